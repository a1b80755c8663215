"""Time shrinking beside plain forward passes, and the smaller network beside what it promises.

    python benchmarks/shrink_cost.py

Networks of the lab with random weights, 1,000 random images of 32×32; half of the parameters. In
turn, round by round: forward passes over the images by the original and by the smaller network, and
`convsim.shrink`; of this the time in solves is taken apart: selections, compensations, regressions
with the moments they are made of. Processor time of one thread. One record a network goes to
results/shrink_cost.jsonl, and results/shrink_cost.md is made of the last of each.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import convsim
from convsim.lab.models import build_model
from convsim.lab.records import append_record, environment, read_records
from convsim.shrinking import consumers, sequence, survey
from convsim.shrinking.statistics import MapStatistics, RegressionStatistics

RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "shrink_cost.jsonl", RESULTS / "shrink_cost.md"
NETWORKS = {"cnn": 32, "vgg19": 16, "resnet20": 16, "shrinking_networks:mobile": None}
IMAGES, BATCH, SHARE = 1000, 100, 0.5
SOLVES: list[tuple[Any, str]] = [
    (survey, "greedy_selection"), (consumers, "map_compensation"), (sequence, "ridge_regression"),
    (MapStatistics, "add"), (RegressionStatistics, "add"),
]  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, and its result."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


class Solves:
    """Adds up the time in solves while it is entered."""

    def __enter__(self) -> "Solves":
        """Put a clock around every solve."""
        self.seconds = 0.0
        self._before = [(owner, name, getattr(owner, name)) for owner, name in SOLVES]
        for owner, name, function in self._before:
            setattr(owner, name, self._clocked(function))
        return self

    def __exit__(self, *error: object) -> None:
        """Take the clocks away."""
        for owner, name, function in self._before:
            setattr(owner, name, function)

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seconds, result = timed(lambda: function(*args, **options))
            self.seconds += seconds
            return result

        return call


@torch.no_grad()
def passes(model: nn.Module, batches: list[torch.Tensor]) -> None:
    """Run a network over all images."""
    for batch in batches:
        model(batch)


def run(name: str, rounds: int) -> dict[str, Any]:
    """Time one network."""
    torch.manual_seed(0)
    model = build_model(name, classes=10, width=NETWORKS[name])
    batches = list(torch.randn(IMAGES, 3, 32, 32).split(BATCH))
    with torch.no_grad():
        model.train()(batches[0])
    model.eval()
    samples: dict[str, list[float]] = {"plain": [], "shrink": [], "solves": [], "smaller": []}
    for _ in range(rounds):
        with Solves() as solves:
            seconds, shrunk = timed(lambda: convsim.shrink(model, batches, parameters=SHARE))
        samples["shrink"].append(seconds)
        samples["solves"].append(solves.seconds)
        samples["plain"].append(timed(lambda: passes(model, batches))[0])
        samples["smaller"].append(timed(partial(passes, shrunk.model, batches))[0])
    report = shrunk.report
    return {"name": name, "width": NETWORKS[name], "images": IMAGES, "share": SHARE,
            "parameters": report.parameters.share, "macs": report.macs.share,
            "samples": samples}  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Write the page."""
    lines = [
        "# What shrinking costs, and how fast the smaller network is", "",
        f"{IMAGES} images of 32×32, {SHARE:.0%} of the parameters, one thread; medians, in units",
        "of the plain forward passes over those images. See `shrink_cost.py`.", "",
        "| network | plain, s | shrinking without solves | solves | multiplications left "
        "| time of the smaller network | images a second: before | after |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for one in {record["name"]: record for record in records}.values():
        samples = one["samples"]
        plain = median(samples["plain"])
        ratio = median(
            (a - b) / c
            for a, b, c in zip(samples["shrink"], samples["solves"], samples["plain"], strict=True)
        )
        smaller = median(samples["smaller"])
        lines.append(
            f"| {one['name'].rpartition(':')[2]} | {plain:.2f} | {ratio:.2f} "
            f"| {median(samples['solves']) / plain:.2f} | {one['macs']:.1%} "
            f"| {smaller / plain:.1%} | {IMAGES / plain:.0f} | {IMAGES / smaller:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        record = run(name, options.rounds)
        append_record(RECORDS, record | {"environment": environment()})
        print(record, flush=True)
    PAGE.write_text(table(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
