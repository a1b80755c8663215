"""Several processes: each its own images, or its own part of every weight, and the same steps.

One group of 2 processes and one of 4 are started, once; each works through a table of cases and
leaves what it found. The tests compare that with one process.
"""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from closeness import rounding
from convsim import (
    ActivationPenalty,
    ConvolutionalSimilarity,
    ConvsimError,
    Regularizer,
    initialize_,
)
from convsim.kernels.windows import spread
from convsim.penalties import MapSimilarity, preset
from seeds import new_generator, reseed

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available(),
        reason="needs a torch that is built with torch.distributed",
    ),
    pytest.mark.timeout(600),  # of which the processes take most, at the first test
]
STEPS, IMAGES = 10, 8
MATCHED = ConvolutionalSimilarity(channels="matched", scale="raw", reduction="sum")


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


def network(dtype=torch.float64):
    """Rows that 2 and 4 ranks share evenly, unevenly and not at all; groups whole and cut."""
    reseed()
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(),
        nn.Conv2d(5, 3, 1), nn.Tanh(),  # of 4 ranks the last has no filter
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(),  # 4 ranks cut its groups
        nn.Conv2d(8, 12, (3, 1), groups=4), nn.ReLU(),
        nn.ConvTranspose2d(12, 4, 2),
    ).to(dtype)  # fmt: skip


def kinds():
    reseed(1)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
        Standardised(3, 6, 3),
        nn.Conv1d(3, 7, 5, dilation=2),
        nn.Conv3d(1, 4, 2),
        nn.Conv2d(2, 5, 17),  # by Fourier transforms
        nn.Conv2d(3, 6, 3),
    ).double()


def images(step, dtype=torch.float64):
    generator = new_generator(step)
    return torch.randn(IMAGES, 2, 9, 9, generator=generator, dtype=torch.float64).to(dtype)


class Case:
    """Ten steps of one kind of training.

    Args:
        wrap: How the model is spread over ranks, a name in `WRAPS`.
        route: How the penalty comes in: "backward_", for one on kernels; and for one on feature
            maps "loss", or "criterion" (attached to it).
        own_images: Whether every rank sees its own part of a batch; otherwise all see it all.
    """

    def __init__(
        self, wrap, penalty, *, route=None, own_images=True, dtype=torch.float64, accumulate=1,
        scale=1.0, coefficient=None,
    ):  # fmt: skip
        self.wrap, self.penalty, self.dtype = wrap, penalty, dtype
        self.on_maps = isinstance(preset(penalty).penalty, ActivationPenalty)
        self.route = route or ("loss" if self.on_maps else "backward_")
        self.own_images, self.accumulate, self.scale = own_images, accumulate, scale
        self.coefficient = coefficient

    def __repr__(self):
        penalty = "matched" if self.penalty is MATCHED else self.penalty
        options = [
            "float32" if self.dtype == torch.float32 else "",
            f"accumulate {self.accumulate}" if self.accumulate > 1 else "",
            "scaled" if self.scale != 1 else "",
            str(self.coefficient or ""),
            "" if self.own_images else "same images",
        ]
        return " ".join([self.wrap, penalty, self.route, *filter(None, options)])

    def train(self, rank=0, ranks=1, alone_for=1):
        """Train on this rank; or alone, on what so many ranks would see, one after the other."""
        model = network(self.dtype)
        wrapped = WRAPS[self.wrap](model) if ranks > 1 else model
        initialize_(model, steps=2)
        regularizer = Regularizer(model, self.penalty, coefficient=self.coefficient)
        criterion, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)
        if self.route == "criterion":
            regularizer.attach(criterion)
        cut = max(ranks, alone_for) if self.own_images else 1
        for step in range(STEPS):
            optimizer.zero_grad()
            batches = images(step, self.dtype).chunk(self.accumulate)
            for i, batch in enumerate(batches, 1):
                if hasattr(wrapped, "set_requires_gradient_sync"):
                    wrapped.set_requires_gradient_sync(i == len(batches))
                for part in range(alone_for):
                    maps = wrapped(batch[(rank + part) % cut :: cut])
                    loss = criterion(maps, torch.zeros_like(maps))
                    scale = self.scale / self.accumulate / alone_for
                    if self.route == "loss":
                        loss = loss + regularizer()
                    (scale * loss).backward()
            if self.route == "backward_":
                regularizer.backward_(self.scale)
            for parameter in model.parameters():
                parameter.grad /= self.scale
            optimizer.step()
        return {name: whole(value) for name, value in model.state_dict().items()}


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def mesh(*shape):
    names = ("replicate", "shard")[-len(shape) :]
    return torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=names)


def shard(model, mesh, layers=slice(2, 7, 4)):
    """Shard two layers apart, and the rest with the model, which keeps it gathered longer."""
    from torch.distributed.fsdp import fully_shard

    for layer in model[layers]:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def ranks():
    return torch.distributed.get_world_size()


WRAPS = {
    "DDP": nn.parallel.DistributedDataParallel,
    "FSDP2": lambda model: shard(model, mesh(ranks())),
    "FSDP2 at the root": lambda model: shard(model, mesh(ranks()), slice(0)),
    "HSDP": lambda model: shard(model, mesh(2, ranks() // 2)),
}
CASES = {
    2: [
        Case("DDP", "crossed"),
        Case("DDP", MATCHED, route="loss"),
        Case("DDP", "crossed", dtype=torch.float32),
        Case("DDP", "crossed", coefficient="auto"),
        Case("DDP", "recommended"),
        Case("DDP", "recommended", dtype=torch.float32),
        Case("DDP", "recommended", route="criterion", accumulate=2),
        Case("DDP", "recommended", route="loss", scale=1024.0),
        Case("DDP", "recommended", own_images=False, coefficient="auto"),
        Case("DDP", "decov", coefficient=1.0),
        Case("FSDP2", "crossed"),
        Case("FSDP2", "crossed", dtype=torch.float32),
        Case("FSDP2", MATCHED, accumulate=2),
        Case("FSDP2", MATCHED, route="loss"),
        Case("FSDP2", "crossed", scale=1024.0),
        Case("FSDP2", "crossed", coefficient="auto"),
        Case("FSDP2", "authors"),
        Case("FSDP2", "cosine", route="loss"),
        Case("FSDP2", "recommended", accumulate=2),
        Case("FSDP2", "recommended", dtype=torch.float32),
        Case("FSDP2", "recommended", route="criterion", scale=1024.0),
        Case("FSDP2", "recommended", route="loss", accumulate=2),
        Case("FSDP2", "recommended", own_images=False, coefficient="auto"),
        Case("FSDP2 at the root", "crossed", route="loss"),
        Case("FSDP2 at the root", "recommended"),
    ],
    4: [
        Case("FSDP2", "crossed"),
        Case("FSDP2", "crossed", route="loss", dtype=torch.float32),
        Case("FSDP2", MATCHED, coefficient="auto"),
        Case("FSDP2", "adjacent", route="loss"),
        Case("FSDP2", "recommended"),
        Case("HSDP", "crossed", accumulate=2),
        Case("HSDP", MATCHED, route="loss"),
        Case("HSDP", "recommended", route="criterion", accumulate=2),
        Case("HSDP", "recommended", own_images=False, coefficient="auto"),
    ],
}


class Traffic(TorchDispatchMode):
    """Count the bytes that this rank hands to collectives, by operation."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2].rstrip("_")
        if func.namespace in ("c10d", "_c10d_functional") and not name.startswith(("wait", "_")):
            tensors = [t for t in torch.utils._pytree.tree_leaves(args[0]) if hasattr(t, "nbytes")]
            self.bytes[name] += sum(t.nbytes for t in tensors)
        return func(*args, **(kwargs or {}))


def traffic(filters, penalty):
    """Count what one `backward_` sends for a layer of many filters."""
    model = shard(nn.Sequential(nn.Conv2d(6, filters, 3)), mesh(ranks()))
    regularizer = Regularizer(model, penalty)
    with Traffic() as counted:
        regularizer.backward_()
    return dict(counted.bytes)


def gradients(model, penalty, mark=lambda model: None):
    regularizer = Regularizer(model, penalty)
    mark(model)
    value = regularizer.backward_()
    values = regularizer.values()
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return value, values, found


def placed(model, placements, on=None):
    """Put every parameter on the mesh by hand, as tensor parallelism does."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not isinstance(parameter, DTensor):
                layout = placements if parameter.dim() > 1 else [Replicate()]
                spread = distribute_tensor(parameter.detach(), on or mesh(ranks()), layout)
                module._parameters[name] = nn.Parameter(spread)
    return model


def with_gradients(placements):
    """Leave a gradient of ones in another layout than the parameters'."""

    def mark(model):
        from torch.distributed.tensor import DTensor

        for parameter in model.parameters():
            share = torch.ones(parameter.shape, dtype=parameter.dtype)
            if placements[0].is_partial():
                share /= ranks()
            parameter.grad = DTensor.from_local(share, parameter.device_mesh, placements)

    return mark


def lopsided():
    """One filter a thousand times the others: what is left beside it must not lose its digits."""
    reseed(2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3))
    with torch.no_grad():
        model[0].weight[1] *= 1000
    return model


def refusal(call):
    try:
        call()
    except ConvsimError as error:
        return str(error)
    return "no error"


def flat_shards(use_orig_params):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(
        network(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )


def in_summoned_weights():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = flat_shards(True)
    with FullyShardedDataParallel.summon_full_params(model):
        regularizer = Regularizer(model, "crossed")
    model(images(0)[:4]).square().mean().backward()  # the same on all ranks
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        value = regularizer.backward_()
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        found = [p.grad.clone() for p in model.parameters()]
    return value, found, refusal(regularizer.backward_)


def on_maps_of_flat_shards():
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = flat_shards(True)
    with FullyShardedDataParallel.summon_full_params(model):
        regularizer = Regularizer(model)
    loss = model(images(0)[:4]).square().mean()
    value = regularizer()
    (loss + value).backward()
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return value.detach(), [p.grad.clone() for p in model.parameters()]


def made_before_it_was_sharded():
    model = network()
    regularizer = Regularizer(model)
    shard(model, mesh(ranks()))
    loss = model(images(0)[:4]).square().mean()
    value = regularizer()
    (loss + value).backward()
    return value.detach(), [whole(p.grad) for p in model.parameters()]


def on_replicated_maps(placements):
    """Every tensor a DTensor, the maps too."""
    from torch.distributed.tensor import distribute_tensor

    model = placed(network(), placements)
    regularizer = Regularizer(model)
    loss = model(distribute_tensor(images(0)[:4], mesh(ranks()), placements)).square().mean()
    value = regularizer()
    (loss.full_tensor() + value).backward()
    return value.detach(), [whole(p.grad) for p in model.parameters()]


def automatic_on_own_images():
    rank = torch.distributed.get_rank()
    model = network()
    wrapped = WRAPS["DDP"](model)
    regularizer = Regularizer(model, coefficient="auto")
    for step in range(2):
        loss = wrapped(images(step)[rank::2]).square().mean()
        (loss + regularizer()).backward()
        if step == 0 and rank == 0:
            repr(regularizer)  # one rank that looks must not wait for the others
            regularizer.state_dict()
    return torch.tensor(regularizer.coefficient, dtype=torch.float64)


def sharded_alone():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)))
    return refusal(lambda: Regularizer(shard(model, mesh(ranks()), slice(1)), "crossed"))


def left_gathered():
    model = shard(network(), mesh(ranks()))
    regularizer = Regularizer(model, "crossed")
    model.set_reshard_after_backward(False)
    model(images(0)).sum().backward()
    return refusal(regularizer.backward_)


def second_derivative():
    model = shard(network(), mesh(ranks()))
    weights = [layer.module.weight for layer in Regularizer(model, "crossed").layers]
    value = Regularizer(model, "crossed")()
    return refusal(lambda: torch.autograd.grad(value, weights, create_graph=True))


def without_grad_mode():
    with torch.no_grad():
        return gradients(shard(network(), mesh(ranks())), "crossed")


def checks_of_4():
    """Both at once: tensor parallel on one axis of a mesh, FSDP2 on the other."""
    from torch.distributed.tensor import Shard

    both = mesh(2, 2)
    return {
        f"tensor parallel by axis {axis}": lambda axis=axis: gradients(
            shard(placed(network(), [Shard(axis)], both["shard"]), both["replicate"]), "crossed"
        )
        for axis in (0, 1)
    }


def checks_of_2():
    from torch.distributed.tensor import Partial, Replicate, Shard

    by_filters, by_channels = [Shard(0)], [Shard(1)]
    return {
        "gradients of kinds": lambda: gradients(shard(kinds(), mesh(ranks()), slice(0)), "crossed"),
        "matched gradients of kinds": lambda: gradients(
            shard(kinds(), mesh(ranks()), slice(0)), MATCHED
        ),
        "lopsided": lambda: gradients(shard(lopsided(), mesh(ranks())), MATCHED),
        "cut by channels": lambda: gradients(placed(network(), by_channels), "crossed"),
        "replicated": lambda: gradients(placed(network(), [Replicate()]), MATCHED),
        "replicated gradient": lambda: gradients(
            placed(network(), by_filters), "crossed", with_gradients([Replicate()])
        ),
        "partial gradient": lambda: gradients(
            placed(network(), by_filters), "crossed", with_gradients([Partial()])
        ),
        "partial gradient, gathered": lambda: gradients(
            placed(network(), by_filters), "cosine", with_gradients([Partial()])
        ),
        "without grad mode": without_grad_mode,
        "traffic": lambda: {
            (filters, form): traffic(filters, penalty)
            for filters in (16, 256)
            for form, penalty in (("crossed", "crossed"), ("matched", MATCHED), ("none", "cosine"))
        },
        "flat shards": lambda: [
            refusal(lambda own=own: Regularizer(flat_shards(own), "crossed"))
            for own in (True, False)
        ],
        "summoned": in_summoned_weights,
        "maps of flat shards": on_maps_of_flat_shards,
        "made before": made_before_it_was_sharded,
        "replicated maps": lambda: on_replicated_maps([Replicate()]),
        "auto on own images": automatic_on_own_images,
        "left gathered": left_gathered,
        "sharded alone": sharded_alone,
        "second derivative": second_derivative,
    }


def work(rank, folder, count):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
    )
    found = {str(case): case.train(rank, count) for case in CASES[count]}
    checks = checks_of_2() if count == 2 else checks_of_4()
    found |= {name: check() for name, check in checks.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


class Groups(dict):
    """What each rank of a group found; a group is started when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, count):
        folder = self.folder / str(count)
        folder.mkdir()
        spawn(work, (str(folder), count), nprocs=count)
        files = [folder / f"{rank}.pt" for rank in range(count)]
        self[count] = [torch.load(file, weights_only=True) for file in files]
        return self[count]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return Groups(tmp_path_factory.mktemp("ranks"))


def close(actual, expected, tolerance):
    """Compare tensors by norm, relative to the expected one's."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.isfinite().all()
    assert (actual - expected).norm() <= tolerance * expected.norm()


def close_gradients(found, model, penalty, before=None):
    value, values, gradient = found
    expected = gradients(model, penalty, before or (lambda model: None))
    close(value, expected[0], 1e-9)
    assert values == pytest.approx(expected[1], rel=1e-9)
    assert gradient.keys() == expected[2].keys()
    for name, own in expected[2].items():
        close(gradient[name], own, 1e-9)


CASES_BY_RANKS = [(count, case) for count, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("count", "case"), CASES_BY_RANKS, ids=str)
def test_ten_steps_are_those_of_one_process(groups, count, case):
    first, *others = (found[str(case)] for found in groups[count])
    tolerance = rounding(STEPS * 27) if case.dtype == torch.float32 else 1e-9
    alone_for = count if case.on_maps and case.own_images else 1
    for name, expected in case.train(alone_for=alone_for).items():
        close(first[name], expected, tolerance)
        assert all(torch.equal(first[name], other[name]) for other in others)


def test_auto_is_found_from_the_images_of_all_ranks(groups):
    """As long as the loss' gradient at the layers' own maps, over all ranks."""
    squares = torch.zeros(2, dtype=torch.float64)
    for rank in range(2):
        maps, output = [], images(0)[rank::2]
        for layer in network():
            output = layer(output)
            maps += [output] if hasattr(layer, "kernel_size") else []
        loss = output.square().mean()
        alone = [y.detach().requires_grad_() for y in maps]
        own = [y.movedim(1, -1).flatten(0, -2) for y in alone]
        penalty = torch.stack(MapSimilarity().values([y[spread(256, len(y))] for y in own])).mean()
        lengths = torch.autograd.grad(loss, maps), torch.autograd.grad(penalty, alone)
        squares += torch.stack([sum(g.square().sum() for g in each) for each in lengths])
    loss, penalty = squares.sqrt()
    for found in groups[2]:
        close(found["auto on own images"], loss / penalty, 1e-9)


@pytest.mark.parametrize(
    ("count", "check", "model", "penalty"),
    [
        (2, "gradients of kinds", kinds, "crossed"),
        (2, "matched gradients of kinds", kinds, MATCHED),
        (2, "cut by channels", network, "crossed"),
        (2, "replicated", network, MATCHED),
        (2, "without grad mode", network, "crossed"),
        (4, "tensor parallel by axis 0", network, "crossed"),
        (4, "tensor parallel by axis 1", network, "crossed"),
    ],
)
def test_gradients_are_those_of_one_process(groups, count, check, model, penalty):
    for found in groups[count]:
        close_gradients(found[check], model(), penalty)


def ones(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize(
    ("check", "penalty"),
    [
        ("replicated gradient", "crossed"),
        ("partial gradient", "crossed"),
        ("partial gradient, gathered", "cosine"),
    ],
)
def test_a_gradient_that_is_there_may_lie_otherwise(groups, check, penalty):
    for found in groups[2]:
        close_gradients(found[check], network(), penalty, ones)


def test_small_filters_keep_their_digits_beside_a_large_one(groups):
    _, _, expected = gradients(lopsided().double(), MATCHED)
    for found in groups[2]:
        actual = found["lopsided"][2]["0.weight"]
        for own, reference in zip(actual, expected["0.weight"], strict=True):
            close(own, reference, rounding(4 * own.numel()))


def test_traffic_does_not_grow_with_the_number_of_filters(groups):
    """A sum over 25 lags in float64, for matched of each of 6 channels, and the value."""
    sent = groups[2][0]["traffic"]
    for filters in (16, 256):
        assert sent[filters, "crossed"] == {"allreduce": 8 * (25 + 1)}
        assert sent[filters, "matched"] == {"allreduce": 8 * (6 * 25 + 1)}
        assert sent[filters, "none"] == {"all_gather_into_tensor": filters * 6 * 9 * 4 // 2}


def test_what_cannot_be_right_is_refused(groups):
    found = groups[2][1]
    for message in found["flat shards"]:
        assert "FSDP1) keeps its weight in a flat shard" in message
        assert "fully_shard" in message
    assert "Call model.reshard() before" in found["left gathered"]
    assert "apply it to the module around it" in found["sharded alone"]
    assert "gather the weight with full_tensor()" in found["second derivative"]


@pytest.mark.parametrize("check", ["made before", "maps of flat shards", "replicated maps"])
def test_maps_do_not_mind_where_the_weights_are(groups, check):
    model = network()
    regularizer = Regularizer(model)
    loss = model(images(0)[:4]).square().mean()
    value = regularizer()
    (loss + value).backward()
    for rank in groups[2]:
        close_to(model, value, *rank[check])


def test_flat_shards_may_be_put_together_for_a_penalty_on_kernels(groups):
    model = network()
    regularizer = Regularizer(model, "crossed")
    model(images(0)[:4]).square().mean().backward()
    value = regularizer.backward_()
    for rank in groups[2]:
        *found, refused = rank["summoned"]
        close_to(model, value, *found)
        assert "keeps its weight in a flat shard" in refused


def close_to(model, value, found, gradients):
    close(found, value, 1e-9)
    for own, parameter in zip(gradients, model.parameters(), strict=True):
        close(own, parameter.grad, 1e-9)
