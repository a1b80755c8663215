"""Runs side by side: a lane for each method, fed epoch by epoch, until the time is up."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerator import Mark, on
from journal import Journal, UnfitError, append_line, environment
from networks import NETWORKS
from plan import Block
from recipes import RECIPES
from training import Gallery, Lane, Run

NETWORK_FILE = "{network}-{penalty}.pt"
_AHEAD = 2  # epochs that a lane may be given before the first of them is done
_TUNING_SEED = 100


def key(run: dict[str, Any]) -> str:
    """Name a run by its configuration."""
    return json.dumps(run, sort_keys=True)


class Progress:
    """A run under way in its lane."""

    def __init__(self, run: Run, lane: Lane) -> None:
        self.run, self.lane, self.began = run, lane, time.monotonic()
        self._epoch_steps, self._epoch = lane.begin(run), 0
        self._marks: deque[Mark] = deque()

    @property
    def over(self) -> bool:
        """Whether every epoch has been given, if not done."""
        return self._epoch == self.run.epochs

    def give_an_epoch(self) -> None:
        """Launch one epoch and a look at the validation images; wait only if far ahead."""
        if len(self._marks) == _AHEAD:
            self._marks.popleft().wait()
        with on(self.lane.stream):
            for _ in range(self._epoch_steps):
                self.lane.step()
        self.lane.look(self._epoch)
        self._epoch += 1
        self._marks.append(Mark(self.lane.stream))


class Session:
    """The runs of one block, as far as the time goes."""

    def __init__(
        self,
        journal: Journal,
        gallery: Gallery,
        block: Block,
        records: Path,
        known: dict[str, dict[str, Any]],
        data: Path,
        rehearse: bool,
    ) -> None:
        self.journal, self.gallery, self.block = journal, gallery, block
        self.records, self.known, self.data, self.rehearse = records, known, data, rehearse
        self.lanes: dict[str, Lane] = {}
        self._epoch_seconds = 0.0  # of all lanes together
        self._captured: dict[str, bool] = {}
        self._environment = environment(journal.device)

    def train(self, methods: list[str]) -> dict[str, Any]:
        """Tune, then train budget by budget and seed by seed, all methods at once."""
        done = self._together([self._tuning(method) for method in methods])
        tuned = all(key(asdict(run)) in self.known for m in methods for run in self._tuning(m))
        for budget in self.block.budgets if tuned else ():  # else there is no time for these either
            for seed in self.block.seeds:
                done += self._together([[self._final(m, budget, seed)] for m in methods])
        return {
            "runs": done, "captured": self._captured, "epoch_s": self._epoch_seconds,
            "tuned factors": {method: self._factor(method) for method in methods},
        }  # fmt: skip

    def _run(self, method: str, factor: float, epochs: int, seed: int, tuning: bool) -> Run:
        penalty, _, falling = method.partition(", ")
        return Run(
            self.block.network, self.block.recipe, penalty, bool(falling),
            factor if penalty != "none" else 0.0, epochs, seed, tuning,
        )  # fmt: skip

    def _tuning(self, method: str) -> list[Run]:
        if method == "none" or len(self.block.factors) < 2:
            return []
        return [
            self._run(method, factor, self.block.tuning, _TUNING_SEED, True)
            for factor in self.block.factors
        ]

    def _final(self, method: str, budget: int, seed: int) -> Run:
        return self._run(method, self._factor(method), budget, seed, False)

    def _factor(self, method: str) -> float:
        """Take the factor of the highest validation accuracy over the last epoch, else 1."""
        scores = {
            run.factor: mean(self.known[key(asdict(run))]["validation_accuracy"][-1:])
            for run in self._tuning(method)
            if key(asdict(run)) in self.known
        }
        return max(scores, key=lambda factor: scores[factor], default=1.0)

    def _together(self, queues: list[list[Run]]) -> int:
        """Train queues of runs, a lane each, side by side; return how many runs have ended."""
        waiting = {
            self._method(runs[0]): deque(r for r in runs if key(asdict(r)) not in self.known)
            for runs in queues
            if runs
        }
        under_way: dict[str, Progress] = {}
        done = 0
        while True:
            for method, runs in waiting.items():
                if method not in under_way and runs and self._fits(runs[0]):
                    run = runs.popleft()
                    under_way[method] = Progress(run, self._lane(method, run))
            if not under_way or self.journal.left < 3:
                return done
            started = time.monotonic()
            for progress in under_way.values():
                progress.give_an_epoch()
            for method, progress in list(under_way.items()):
                if progress.over:
                    self._keep(progress, list(under_way))
                    del under_way[method]
                    done += 1
            self._pace(time.monotonic() - started)

    @staticmethod
    def _method(run: Run) -> str:
        return f"{run.penalty}, falling" if run.falling else run.penalty

    def _fits(self, run: Run) -> bool:
        """Tell whether a run would end in time, as far as is known."""
        return self.journal.left > 1.2 * run.epochs * self._epoch_seconds + 2

    def _pace(self, seconds: float) -> None:
        """Learn how long an epoch of all lanes takes: the longest, for a first is the quickest."""
        self._epoch_seconds = max(self._epoch_seconds * 0.9, seconds)

    def _lane(self, method: str, run: Run) -> Lane:
        """Take the method's lane, or make it; without a graph where capturing has failed before."""
        if method in self.lanes:
            return self.lanes[method]
        item = f"capture: {self.block.network}, {self.block.recipe}, {method}"
        graph = item not in self.journal.failures
        longest = max(self.block.tuning, *self.block.budgets)
        images = len(self.gallery.labels)
        steps = longest * (images // RECIPES[run.recipe].batch)
        try:
            lane = Lane(
                run, NETWORKS[run.network], self.gallery,
                most_steps=steps, most_epochs=longest, graph=graph,
            )  # fmt: skip
        except Exception as error:
            if not graph:
                raise
            raise UnfitError(item) from error
        self._captured[method] = graph
        self.lanes[method] = lane
        return lane

    def _keep(self, progress: Progress, beside: list[str]) -> None:
        """Write down a finished run."""
        run, lane = progress.run, progress.lane
        found = lane.result(run)
        record = {
            "run": asdict(run), **found,
            "seconds": round(time.monotonic() - progress.began, 2), "beside": beside,
            "data": self.gallery.source, "rehearsal": self.rehearse,
            "environment": self._environment,
        }  # fmt: skip
        append_line(self.records, record)
        self.known[key(record["run"])] = record
        self.journal.say(
            f"  {run.network} {run.recipe} {self._method(run)} ×{run.factor:g} "
            f"{run.epochs} epochs seed {run.seed}: "
            f"{found.get('test_accuracy', found['validation_accuracy'][-1]):.4f}"
        )
        keeps = self.block.keeps and run.penalty in ("none", "recommended") and not run.tuning
        if keeps and run.epochs == max(self.block.budgets):
            name = NETWORK_FILE.format(network=run.network, penalty=run.penalty)
            torch.save({"run": asdict(run), "state": lane.model.state_dict()}, self.data / name)
