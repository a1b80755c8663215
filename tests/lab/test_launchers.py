"""Launchers: a grid gives the same records wherever its runs are trained, whatever dies."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import active_children, get_context
from typing import get_args, get_type_hints

import pytest

from convsim.cli.app import compare_command
from convsim.errors import ConvsimError, MissingExtraError
from convsim.lab import launchers
from convsim.lab.comparison import compare
from convsim.lab.datasets import load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.records import read_records
from convsim.lab.runs import Recipe
from needs import need_module

METHODS = [parse_method("none"), parse_method("recommended@0.1")]
RECIPE = Recipe(width=2, batch_size=16, measured_images=20)


def grid(folder, epochs=12, **options):
    data = load_dataset("digits").subset(train=150, test=50)
    return compare(data, replace(RECIPE, epochs=epochs), METHODS, [0, 1], folder, **options)


def timeless(records):
    def result(record):
        return {k: v for k, v in record["result"].items() if not k.endswith("seconds")}

    return [(r["key"], r["configuration"], result(r), r["effective"]) for r in records]


@contextmanager
def killing(folder):
    """Kill the first worker that has a checkpoint; yields a list that its number comes to."""
    killed = []

    def watch():
        while not killed:
            for checkpoint in folder.glob("checkpoints/*/last.ckpt"):
                with suppress(FileNotFoundError, ProcessLookupError):  # it has just finished
                    _, number, *_ = (checkpoint.parent / ".owner").read_text().split()
                    os.kill(int(number), signal.SIGKILL)
                    killed.append(int(number))
                    break
            time.sleep(0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield killed
    watcher.join(timeout=1)
    assert killed
    assert killed[0] != os.getpid()


@pytest.fixture(scope="module")
def _cluster():
    ray = need_module("ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15, beside other tests, would be starved
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        signal.signal(signal.SIGTERM, on_sigterm)
        yield
        ray.shutdown()


@pytest.mark.timeout(900)  # a busy machine
@pytest.mark.usefixtures("_cluster")
def test_a_ray_cluster_that_loses_a_worker_gives_the_records_of_the_pool(tmp_path):
    ray, pool = tmp_path / "ray", tmp_path / "pool"
    with killing(ray):
        found = grid(ray, launcher="ray")
    assert timeless(found) == timeless(grid(pool, jobs=2))
    for folder in (ray, pool):
        on_disk = read_records(folder / "records.jsonl")
        assert sorted(r["key"] for r in on_disk) == sorted(r["key"] for r in found)
        assert not (folder / "checkpoints").exists()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_cluster")
def test_ray_does_not_start_a_run_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "LOST_WORKERS", 0)
    with killing(tmp_path), pytest.raises(ConvsimError, match="lost the worker of a run 1 times"):
        grid(tmp_path, epochs=1000, launcher="ray")
    (checkpoint,) = tmp_path.glob("checkpoints/*/last.ckpt")
    assert checkpoint.stat().st_size > 0


def doomed(run, folder):
    if (run.method.name, run.seed) == ("none", 0):
        time.sleep(1)  # until the other one is at work
        os.kill(os.getpid(), signal.SIGKILL)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # as Lightning does
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    time.sleep(600)


def test_a_pool_that_loses_a_process_says_so_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "train_one", doomed)
    monkeypatch.setattr(launchers, "get_context", lambda how: get_context("fork"))  # it is quick
    with pytest.raises(ConvsimError, match="was killed, perhaps because memory ran out"):
        grid(tmp_path, jobs=2)
    assert not active_children()


def test_without_ray_the_install_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[ray\]'"):
        grid(tmp_path, launcher="ray")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launcher": "cloud"}, "no launcher 'cloud'. Choose one of local, ray"),
        ({"launcher": "ray", "jobs": 2}, "jobs is for the local launcher; got 2"),
    ],
)
def test_bad_launchers_are_refused(tmp_path, options, message):
    with pytest.raises(ConvsimError, match=message):
        grid(tmp_path, **options)


def test_the_command_line_knows_every_launcher():
    names = get_type_hints(compare_command)["launcher"]
    assert get_args(names) == tuple(launchers.LAUNCHERS)
