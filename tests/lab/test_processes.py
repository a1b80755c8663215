"""Training one network on two processes that torchrun starts: this file is what they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convsim.errors import ConvsimError
from convsim.lab.datasets import load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.processes import Processes, processes
from convsim.lab.runs import Recipe, Run
from convsim.lab.training import train

SAME = ("none", "crossed")  # one process takes the same steps
METHODS = (*SAME, "recommended@auto", "decov")
COMMAND = ["train", "digits", "--train-images", "200", "--epochs", "1", "--width", "4"]


def run_of(method):
    norm = "none" if method in SAME else "batch"  # which each process does on its own images
    recipe = Recipe(
        width=4, norm=norm, activation="elu", epochs=2, batch_size=36, measured_images=20
    )
    data = load_dataset("digits").subset(train=200, test=50)
    return Run(parse_method(method), 5, recipe, data)


def flat(network):
    return torch.cat([value.double().flatten() for value in network.state_dict().values()])


class Killed(BaseException):
    pass


def kill(epoch, total, scores):
    raise Killed


def results(method, folder=None, progress=None):
    network, record = train(run_of(method), folder, progress)
    result = {k: v for k, v in record["result"].items() if not k.endswith("seconds")}
    return flat(network), json.dumps(result)


def work(folder):
    from convsim.cli.app import app
    from convsim.lab.comparison import compare

    found = {method: results(method) for method in METHODS}
    try:
        results("recommended@auto", folder / "killed", kill)
    except Killed:
        found["resumed"] = results("recommended@auto", folder / "killed")
    app([*COMMAND, "--out", str(folder / "run")], standalone_mode=False)
    run = run_of("none")
    try:
        compare(run.data, run.recipe, [run.method], [0], folder / "grid")
    except ConvsimError as error:
        found["compare"] = str(error)
    torch.save(found, folder / f"{processes().rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder, what was printed, and what each of two processes found."""
    folder = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*command, __file__, str(folder)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, text=True, check=True, timeout=280,
    )  # fmt: skip
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return folder, finished.stdout, found


def test_all_processes_end_with_the_same_network_and_result(ranks):
    _, _, (one, other) = ranks
    for method in (*METHODS, "resumed"):
        assert torch.equal(one[method][0], other[method][0])
        assert one[method][1] == other[method][1]


@pytest.mark.parametrize("method", SAME)
def test_they_take_the_steps_of_one_process(ranks, method):
    expected, _ = results(method)
    actual = ranks[2][0][method][0]
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_a_resume_is_exact(ranks):
    found = ranks[2][0]
    assert torch.equal(found["resumed"][0], found["recommended@auto"][0])
    assert found["resumed"][1] == found["recommended@auto"][1]


def test_the_command_writes_and_prints_once(ranks):
    folder, printed, _ = ranks
    names = {path.name for path in (folder / "run").glob("[!.]*")}
    assert names == {"last.ckpt", "model.safetensors", "record.json"}
    record = json.loads((folder / "run/record.json").read_text())
    assert record["effective"]["processes"] == 2
    assert json.loads(printed) == record["result"]


def test_a_grid_is_refused(ranks):
    assert "Start it without torchrun, with --jobs" in ranks[2][0]["compare"]


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_every_index_is_taken_and_all_take_equally_many(length):
    batch = list(range(length))
    parts = [Processes(rank, 4, 2).share(batch) for rank in range(4)]
    assert {len(part) for part in parts} == {-(-length // 4)}
    assert {index for part in parts for index in part} == set(batch)
    assert Processes().share(batch) == batch


if __name__ == "__main__":
    work(Path(sys.argv[1]))
