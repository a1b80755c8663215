"""Where the runs of a grid are trained: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from convsim.errors import ConvsimError, NonFiniteError, require
from convsim.lab.datasets import ImageData
from convsim.lab.libraries import check_torchvision
from convsim.lab.methods import Method
from convsim.lab.records import Record
from convsim.lab.runs import Recipe, Run

Trained = Generator[tuple[Run, Record], None, None]
Launcher = Callable[[Sequence[Run], Path, int], Trained]
"""Trains runs, at most `jobs` at a time, with checkpoints in a folder; yields each as it ends."""

LOST_WORKERS = 5
"""How often Ray restarts a run whose worker died; the run goes on from its last checkpoint."""


def checkpoints(folder: Path, run: Run) -> Path:
    """Return where a grid in `folder` keeps a run's checkpoint."""
    return folder / "checkpoints" / run.key


def train_one(run: Run, folder: Path) -> Record:
    """Train a run of the grid in `folder`; a candidate of tuning that diverges scores 0."""
    check_torchvision()
    from convsim.lab.training import train  # noqa: PLC0415 - Lightning takes seconds to import

    try:
        return train(run, checkpoints(folder, run))[1]
    except NonFiniteError as error:
        if run.test:
            raise
        result = {"validation_accuracy": [0.0], "diverged": str(error)}  # a candidate, not chosen
        return run.record(result)


def _on_this_machine(runs: Sequence[Run], folder: Path, jobs: int) -> Trained:
    if jobs == 1 or len(runs) < 2:
        for run in runs:
            yield run, train_one(run, folder)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    others = set(active_children())
    # spawn: a forked child would inherit torch's thread pool in an undefined state.
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_begin_worker, initargs=(threads,)
    )
    try:
        futures = {pool.submit(train_one, run, folder): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ConvsimError(
            "A process that trained a run was killed, perhaps because memory ran out. Run the same "
            "command again to go on, with fewer --jobs if it happens again."
        ) from error
    except BaseException:
        for worker in set(active_children()) - others:
            worker.kill()  # its run goes on from its checkpoint next time
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int) -> None:
    """Set a worker up: Ctrl-C is its parent's to handle, and it ends when its parent does."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The default handler would do, but Lightning replaces it by one after which the pool sees a
    # failed run.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(1))
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _on_ray(runs: Sequence[Run], folder: Path, jobs: int) -> Trained:
    if jobs != 1:
        raise ConvsimError(
            f"jobs is for the local launcher; got {jobs} with ray, which trains as many runs at "
            "once as its cluster has processors (and GPUs, if it has any). Leave it out."
        )
    ray = require("ray", "ray")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level="ERROR")  # at RAY_ADDRESS, or a local one
        if signal.getsignal(signal.SIGTERM) is not on_sigterm:  # Ray takes it
            signal.signal(signal.SIGTERM, on_sigterm)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=LOST_WORKERS)(_train_remotely)
    data = {id(run.data): run.data for run in runs}
    sent = {key: ray.put(images) for key, images in data.items()}  # once, not with every run
    waiting = {
        task.remote(
            folder.absolute(), sent[id(run.data)], run.method, run.seed, run.recipe, run.test
        ): run
        for run in runs
    }  # fmt: skip
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ConvsimError(
            f"Ray lost the worker of a run {LOST_WORKERS + 1} times ({type(error).__name__}). Look "
            "at the cluster and its memory, then run the same command again to go on."
        ) from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _train_remotely(
    folder: Path, data: ImageData, method: Method, seed: int, recipe: Recipe, test: bool
) -> Record:
    torch.set_num_threads(1)  # a run has one processor
    return train_one(Run(method, seed, recipe, data, test), folder)


LAUNCHERS: dict[str, Launcher] = {"local": _on_this_machine, "ray": _on_ray}
"""Name → launcher."""


def find_launcher(name: str) -> Launcher:
    """Look a launcher up by its name.

    Raises:
        ConvsimError: If there is none of that name.
    """
    if name not in LAUNCHERS:
        raise ConvsimError(f"There is no launcher {name!r}. Choose one of {', '.join(LAUNCHERS)}.")
    return LAUNCHERS[name]
