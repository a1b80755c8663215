"""Methods × seeds on one data set and model, tuned first: a grid that resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from convsim.errors import ConvsimError
from convsim.lab.datasets import ImageData
from convsim.lab.files import locked
from convsim.lab.launchers import checkpoints, find_launcher
from convsim.lab.methods import Method
from convsim.lab.processes import processes
from convsim.lab.records import Record, append_record, read_records, report_damaged_record
from convsim.lab.runs import Recipe, Run

TUNING_SEED = 1000
"""Tuning runs are seeded from here on, apart from the seeds that are reported."""

Report = Callable[[Run, int, int], None]
"""Called for each finished run with how many are done and how many there are."""


def compare(
    data: ImageData,
    recipe: Recipe,
    methods: Sequence[Method],
    seeds: Sequence[int],
    folder: Path,
    *,
    tuning_seeds: int = 2,
    learning_rates: Sequence[float] = (),
    jobs: int = 1,
    launcher: str = "local",
    report: Report | None = None,
) -> list[Record]:
    """Train every method with every seed, tuning coefficients and learning rates first.

    Tuning looks at the held-out share of the training data only, with seeds of its own: first each
    coefficient at the recipe's learning rate, then each learning rate at the best coefficient. The
    highest mean accuracy wins; a candidate that diverges counts as 0. Each finished run is appended
    to ``folder/records.jsonl`` at once, and is not repeated by a later call; a run that was cut off
    goes on from its last epoch.

    Args:
        data: The data set.
        recipe: How all are trained.
        methods: The methods, the control first.
        seeds: Seeds to report; the same for every method, so that differences pair.
        folder: Where records and checkpoints go.
        tuning_seeds: How many seeds each candidate is tried with.
        learning_rates: Rates to try for every method, beside the recipe's.
        jobs: How many processes of this machine share the runs, each with its share of the threads.
        launcher: Who trains the runs: "local", processes of this machine, or "ray", a Ray cluster:
            the one at RAY_ADDRESS, or else one of this machine's processors. A run whose worker is
            lost is started again: from its last checkpoint if all machines share `folder`,
            otherwise from the start.
        report: Called after each run.

    Returns:
        The records of the reported runs, method by method, seed by seed.

    Raises:
        ConvsimError: For no method, no or repeated seeds, methods of one name, jobs < 1, or an
            unknown launcher; and if another process trains a grid in the folder.
        MissingExtraError: If Ray is asked for and not installed.
        WriteError: If the folder cannot be written; what is on record stays.
    """
    _check_grid(methods, seeds, tuning_seeds, jobs)
    further = [lr for lr in dict.fromkeys(learning_rates) if lr != recipe.lr]
    coefficients = sum(len(m.coefficients) for m in methods if len(m.coefficients) > 1)
    total = (coefficients + len(methods) * (bool(further) + len(further))) * tuning_seeds
    total += len(methods) * len(seeds)
    before = 0

    def train_all(runs: Sequence[Run]) -> dict[str, Record]:
        nonlocal before
        done = run_all(
            runs, folder,
            jobs=jobs, launcher=launcher, report=report, total=total, before=before,
        )  # fmt: skip
        before += len(runs)
        return done

    def best(candidates: Sequence[Sequence[Candidate]]) -> list[Candidate]:
        runs = {
            candidate: [Run(candidate[0], TUNING_SEED + i, candidate[1], data, test=False)
                        for i in range(tuning_seeds)]
            for own in candidates if len(own) > 1 for candidate in own
        }  # fmt: skip
        done = train_all([run for own in runs.values() for run in own])
        return [
            own[0] if len(own) == 1 else max(own, key=lambda one: _score(runs[one], done))
            for own in candidates
        ]

    with locked(folder):
        chosen = best([[(one, recipe) for one in method.candidates()] for method in methods])
        rates = (recipe.lr, *further)
        chosen = best([[(one, replace(recipe, lr=lr)) for lr in rates] for one, _ in chosen])
        runs = [Run(method, seed, tuned, data) for method, tuned in chosen for seed in seeds]
        done = train_all(runs)
    return [done[run.key] for run in runs]


Candidate = tuple[Method, Recipe]
"""One of the ways to train among which tuning chooses."""


def _score(runs: Sequence[Run], done: dict[str, Record]) -> float:
    """Average the final accuracy on the held-out share."""
    with report_damaged_record("the tuning runs"):
        return fmean(done[run.key]["result"]["validation_accuracy"][-1] for run in runs)


def run_all(
    runs: Sequence[Run],
    folder: Path,
    *,
    jobs: int = 1,
    launcher: str = "local",
    report: Report | None = None,
    total: int | None = None,
    before: int = 0,
) -> dict[str, Record]:
    """Train what is not on record yet, recording each run as it finishes.

    Args:
        runs: The runs.
        folder: Where records and checkpoints go, as in `compare`.
        jobs: As in `compare`, like the next.
        launcher: Who trains the runs.
        report: Called after each run.
        total: How many runs there are in all, for `report`; these if None.
        before: How many were done before these.

    Returns:
        Each run's record by its key.
    """
    total = len(runs) if total is None else total
    launch = find_launcher(launcher)
    path = folder / "records.jsonl"
    wanted = {run.key: run for run in runs}
    with locked(folder):
        done = {r["key"]: r for r in read_records(path) if r.get("key") in wanted}
        todo = [run for run in wanted.values() if run.key not in done]
        finished = [(run, done[run.key]) for run in wanted.values() if run.key in done]
        with closing(launch(todo, folder, jobs)) as trained:
            for count, (run, record) in enumerate(chain(finished, trained), before + 1):
                if run.key not in done:
                    append_record(path, record)
                    done[run.key] = record
                shutil.rmtree(checkpoints(folder, run), ignore_errors=True)
                if report is not None:
                    report(run, count, total)
        with suppress(OSError):  # checkpoints of other runs stay, and so their folder
            (folder / "checkpoints").rmdir()
    return done


def _check_grid(
    methods: Sequence[Method], seeds: Sequence[int], tuning_seeds: int, jobs: int
) -> None:
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names):
        raise ConvsimError(f"A comparison needs methods, each named once; got {names}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConvsimError(f"A comparison needs seeds, each once; got {list(seeds)}.")
    if tuning_seeds < 1 or jobs < 1:
        raise ConvsimError(
            f"tuning_seeds and jobs must be at least 1; got {tuning_seeds} and {jobs}."
        )
    if processes().count > 1:
        raise ConvsimError(
            f"A comparison starts its own processes; torchrun started {processes().count}, which "
            "would all run the same grid. Start it without torchrun, with --jobs."
        )
