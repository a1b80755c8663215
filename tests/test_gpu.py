"""What has to answer on a GPU runs here in miniature, from a copy of the tree alone."""

import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
STAGES = ("correctness", "weights", "steps", "evidence", "shrink")


@pytest.fixture
def gpu(monkeypatch):
    """Make the modules beside the command importable, by names that are theirs alone here."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("*.py")}
    yield
    for name in names & sys.modules.keys():
        del sys.modules[name]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What is committed, or about to be, and nothing else."""
    copy = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard",
         "src", "benchmarks"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "benchmarks/gpu/run").chmod(0o755)
    return copy


BARE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec

@staticmethod
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {missing} else find(name, path, target)

PathFinder.find_spec = find_spec
"""
MISSING = {
    "PIL", "cv2", "lightning", "matplotlib", "pooch", "rich", "safetensors", "scipy",
    "sklearn", "timm", "torchmetrics", "torchvision", "typer",
}  # fmt: skip


def environment(tree, tmp_path, *, bare):
    """Nothing of this checkout; if `bare`, nothing but torch, NumPy and Triton either."""
    if bare:
        (tmp_path / "sitecustomize.py").write_text(BARE.format(missing=MISSING))
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "TRITON_INTERPRET"}}
    return kept | {"PYTHONPATH": os.pathsep.join([str(tree / "src"), str(tmp_path)])}


@pytest.mark.timeout(900)  # a busy machine
def test_every_stage_can_be_rehearsed_with_nothing_installed(tree, tmp_path):
    answer = subprocess.run(
        [sys.executable, tree / "benchmarks/gpu/run", "--rehearse", "--out", tmp_path / "out"],
        cwd=tmp_path, env=environment(tree, tmp_path, bare=True), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    for stage in STAGES:
        record = json.loads((tmp_path / "out" / f"{stage}.json").read_text())
        assert record["status"] == "ended"
        assert record["results"]
        assert not record["failures"]
    runs = [json.loads(line) for line in (tmp_path / "out/runs.jsonl").read_text().splitlines()]
    assert len({json.dumps(run["run"]) for run in runs}) == len(runs) > 8
    assert all("test_accuracy" in run or run["run"]["tuning"] for run in runs)


def test_without_a_gpu_it_says_so(tree, tmp_path):
    answer = subprocess.run(
        [sys.executable, tree / "benchmarks/gpu/run", "--stages", "steps", "--out", tmp_path],
        env=environment(tree, tmp_path, bare=False) | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "There is no GPU" in answer.stdout


class Stream:
    """What `accelerator` asks of a CUDA stream, noted down."""

    current = None

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append(("wait", other))

    def record_event(self):
        return Event()

    def __enter__(self):
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *_):
        Stream.current = self.before


class Event:
    def __init__(self, enable_timing=False):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        assert torch.cuda.synchronize

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretended(monkeypatch):
    """A pretended GPU: every call that `accelerator` makes of torch.cuda exists, with that name."""
    log = []
    Stream.current = default = Stream(log)

    class Graph:
        def replay(self):
            log.append("replay")

    class Capture:
        def __init__(self, graph, stream, capture_error_mode):
            self.stream = stream

        def __enter__(self):
            Stream.current = self.stream

        def __exit__(self, kind, *_):
            if kind is None:  # as torch has it: one that failed stays on its stream
                Stream.current = default

    pretences = {
        "Stream": lambda: Stream(log), "Event": Event, "stream": lambda stream: stream,
        "current_stream": lambda: Stream.current, "synchronize": lambda: log.append("waited"),
        "set_stream": lambda stream: setattr(Stream, "current", stream), "CUDAGraph": Graph,
        "graph": Capture, "set_sync_debug_mode": log.append, "empty_cache": lambda: None,
        "max_memory_allocated": lambda: 2e9,
    }  # fmt: skip
    for name, pretence in pretences.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, pretence)
    return log


@pytest.mark.usefixtures("gpu")
def test_what_only_a_gpu_has(pretended):
    import accelerator as a

    device = torch.device("cuda")
    assert a.milliseconds(lambda: time.sleep(0.01), device, times=2) >= 10
    steps = []
    replay = a.captured(lambda: steps.append(Stream.current), device, warm_up=2)
    assert len(steps) == 3
    assert len({*map(id, steps)}) == 1
    replay()
    assert pretended[-1] == "replay"
    default = Stream.current

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        a.captured(fails, device, warm_up=0)
    assert Stream.current is default
    with a.refusing_to_wait(device):
        assert pretended[-1] == "error"
    assert pretended[-1] == "default"
    stream = a.new_stream(device)
    with a.on(stream):
        assert Stream.current is stream
    a.Mark(stream).wait()
    a.free(device)
    assert a.memory_gigabytes(device) == 2


@pytest.mark.usefixtures("gpu")
def test_a_journal_goes_on_where_another_process_stopped(tmp_path):
    from journal import START_ANEW, Journal, OutOfTimeError, UnfitError, at_most

    def fails():
        raise ValueError("no")

    def unfit():
        raise UnfitError("a part of it") from ValueError("no")

    path = tmp_path / "stage.json"
    first = Journal(path, "stage", torch.device("cpu"), 60)
    assert first.attempt("right", lambda: {"n": 1})["n"] == 1
    assert first.attempt("wrong", fails) is None
    for item in (fails, unfit):
        with pytest.raises(SystemExit) as stop:
            first.attempt(f"poison, {item.__name__}", item, poisons=True)
        assert stop.value.code == START_ANEW
    second = Journal(path, "stage", torch.device("cpu"), 60)
    assert second.attempt("right", fails)["n"] == 1
    assert second.attempt("wrong", lambda: {}) is None
    assert second.attempt("right", lambda: {"n": 2}, prepares=True)["n"] == 2
    assert second.attempt("poison, unfit", lambda: {"n": 3})["n"] == 3
    assert set(json.loads(path.read_text())["failures"]) == {
        "wrong", "poison, fails", "a part of it",
    }  # fmt: skip
    third = Journal(path, "stage", torch.device("cpu"), 0.5)
    third.attempt("too late", lambda: {})
    assert third.skipped == ["too late"]
    with pytest.raises(OutOfTimeError), at_most(0.1):
        time.sleep(10)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["modern", "authors"])
def test_a_lane_steps_as_torch_does(name, tmp_path):
    """A whole run against torch's own optimizer and scheduler, on the same images."""
    from dataclasses import replace

    from photographs import draw, load
    from recipes import RECIPES, learning_rates, order
    from training import Gallery, Lane, Run

    draw(tmp_path, train=120, test=10, size=8)
    gallery = Gallery(load(tmp_path), torch.device("cpu"))
    recipe = RECIPES[name] = replace(RECIPES[name], batch=20)
    run = Run("own", name, "none", False, 0.0, 2, 3, False)

    def build(classes):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes)
        )

    lane = Lane(run, build, gallery, most_steps=10, most_epochs=2, graph=True)  # warmed up
    for _ in range(2):  # a lane serves run after run
        steps = run.epochs * lane.begin(run)
        assert steps == 10
        for _ in range(steps):
            lane.step()
    torch.manual_seed(run.seed)
    model = build(10)
    optimizer = torch.optim.SGD(
        model.parameters(), 1.0, recipe.momentum,
        weight_decay=recipe.decay, nesterov=recipe.nesterov,
    )  # fmt: skip
    drawn = order(recipe, len(gallery.labels), run.epochs, run.seed)
    for step, rate in enumerate(learning_rates(recipe, steps)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        rows = (each[step] for each in (drawn.index, drawn.top, drawn.left, drawn.mirrored))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(gallery.cut(*rows))
        nn.functional.cross_entropy(logits.float(), gallery.labels[drawn.index[step]]).backward()
        optimizer.step()
    for own, expected in zip(lane.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=2e-2, atol=2e-3)  # bf16's own rounding


@pytest.mark.usefixtures("gpu")
def test_a_window_is_cut_and_mirrored(tmp_path):
    from photographs import draw, load
    from training import Gallery

    draw(tmp_path, train=20, test=10, size=8)
    photographs = load(tmp_path)
    gallery = Gallery(photographs, torch.device("cpu"))
    plain = photographs.images[1].permute(1, 2, 0)[None]
    one = torch.tensor([1])
    straight = gallery.cut(one, torch.tensor([4]), torch.tensor([4]), torch.tensor([0]))
    assert torch.equal(straight, gallery.normalized(plain))
    mirrored = gallery.cut(one, torch.tensor([4]), torch.tensor([4]), torch.tensor([1]))
    assert torch.equal(mirrored, straight.flip(-1))
    shifted = gallery.cut(one, torch.tensor([2]), torch.tensor([5]), torch.tensor([0]))
    assert torch.equal(shifted[..., 2:, :-1], straight[..., :-2, 1:])
    assert shifted[..., :2, :].abs().max() < 0.02  # outside is the mean colour


@pytest.mark.usefixtures("gpu")
def test_schedules():
    from recipes import RECIPES, learning_rates, penalty_shares

    rates = learning_rates(RECIPES["modern"], 10)
    assert rates[:2] == pytest.approx([0.2, 0.4])
    assert rates[2:] == pytest.approx([0.4 * i / 8 for i in range(8, 0, -1)])
    assert learning_rates(RECIPES["authors"], 8) == pytest.approx(
        [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    )
    assert penalty_shares(4, falling=True) == [1, 0.5, 0, 0]
    assert penalty_shares(2, falling=False) == [1, 1]


@pytest.mark.usefixtures("gpu")
def test_photographs_are_decoded_or_a_part_of_them_is_unpacked(tmp_path, monkeypatch):
    import tarfile

    import photographs
    from PIL import Image

    generator = np.random.default_rng(0)
    archive = tmp_path / "cifar10-jpeg.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for split, label, number in [
            (s, c, n) for s in ("train", "test") for c in ("cat", "airplane") for n in range(12)
        ]:
            buffer = BytesIO()
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"cifar10-jpeg/{split}/{label}/{number:04}.jpg")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    folder = tmp_path / "data"
    monkeypatch.setattr(photographs, "_PER_CLASS", {"train": 10, "test": 2})
    photographs.prepare(archive, folder)
    assert "Pillow" in photographs.unpack(folder)
    whole = photographs.load(folder)
    assert len(whole.images) + len(whole.validation_images) == 24
    assert whole.test_labels.tolist() == [1] * 12 + [0] * 12

    monkeypatch.setattr(photographs, "decoder", lambda: ("nothing", None))
    assert "a part of 20 training images" in photographs.unpack(folder)
    part = photographs.load(folder)
    assert part.test_labels.tolist() == [1] * 2 + [0] * 2
    assert torch.equal(part.test_images[:2], whole.test_images[:2])


@pytest.mark.usefixtures("gpu")
def test_the_page_is_that_of_the_records():
    import tables

    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.page(text, tables.RESULTS) == text


@pytest.mark.usefixtures("gpu")
def test_the_tables_say_what_the_records_say(tmp_path):
    import tables

    environment = {"device": "G", "torch": "2", "date": "2026-01-01", "source": "s"}
    spread = {"median": 2.0, "low": 1.0, "high": 3.0, "samples": 3}
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "stage": "steps", "environment": environment, "failures": {"f": {"error": "why"}},
                "results": {"net: times": {"variants": {"v": {"ms": spread, "ratio": spread}}}},
            }
        )
    )  # fmt: skip
    lines = [
        {
            "run": {
                "network": "n", "recipe": "r", "penalty": penalty, "falling": False,
                "factor": 2.0 * (penalty != "none"), "epochs": 1, "seed": seed, "tuning": tuning,
            },
            "rehearsal": False, "test_accuracy": accuracy,
        }
        for penalty, seed, accuracy, tuning in [
            ("none", 0, 0.5, False), ("none", 1, 0.6, False), ("p", 0, 0.52, False),
            ("p", 1, 0.63, False), ("p", 2, 0.9, True),
        ]
    ]  # fmt: skip
    (tmp_path / "runs-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = tables.page(tables.PAGE.read_text(encoding="utf-8"), tmp_path)
    assert "| v | 2.00 | 2.000 (1.000–3.000) |" in text
    assert "- f: `why`" in text
    assert "| p | 2 | 2 | 57.50 ± 69.88 | +2.50 ± 6.35 |" in text
