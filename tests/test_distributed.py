"""Several processes that each see their own images."""

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from convsim import Regularizer, initialize_


def start(rank, folder, world_size):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))


def train(rank, folder, coefficient):
    start(rank, folder, 2)
    model = network()
    wrapped = DistributedDataParallel(model)
    regularizer = Regularizer(model, coefficient=coefficient)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(5):
        optimizer.zero_grad()
        wrapped(torch.randn(8, 3, 9, 9)).square().mean().backward()
        regularizer.backward_()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("coefficient", [3.0, "auto"])
def test_data_parallel_ranks_stay_equal(tmp_path, coefficient):
    spawn(train, (str(tmp_path), coefficient), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def ten_steps(model, penalty, route):
    """Train on the same images whatever the rank, so that any number of ranks takes equal steps."""
    initialize_(model, steps=3)
    regularizer = Regularizer(model, penalty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 3, 9, 9, generator=generator)).square().mean()
        if route == "loss":
            loss = loss + regularizer()
        loss.backward()
        if route == "backward_":
            regularizer.backward_()
        optimizer.step()


def shard(rank, folder, world_size, penalty, route):
    from torch.distributed.fsdp import fully_shard

    start(rank, folder, world_size)
    model = network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=torch.distributed.init_device_mesh("cpu", (world_size,)))
    ten_steps(model, penalty, route)
    state = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("world_size", "penalty", "route"),
    [(2, "crossed", "backward_"), (2, "recommended", "loss"), (3, "recommended", "backward_")],
)
def test_fsdp2_takes_the_steps_of_one_process(tmp_path, world_size, penalty, route):
    model = network()
    ten_steps(model, penalty, route)
    spawn(shard, (str(tmp_path), world_size, penalty, route), nprocs=world_size)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for name, expected in model.state_dict().items():
        assert (state[name] - expected).norm() <= 1e-6 * expected.norm()
