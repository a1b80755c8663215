"""Long runs in constant memory: 10,000 regularizer steps of each kind, 100,000 images measured.

    python soak/memory.py [--share 1.0]

A run looks at the process's memory after a fifth of its steps and at its end, and fails if it grew
by more than 8 MiB in between. One that the record holds for these sources is not run again.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from record import Record, digest_of
from torch import Tensor, nn

import convsim

ALLOWED = 8 << 20  # bytes
BATCH = 100
RUNS = {
    "crossed": 10_000,
    "authors": 10_000,
    "recommended": 10_000,
    "decov": 10_000,
    "images": 1000,
}
"""The penalty of a run of steps, or images in batches, and how many."""


def network() -> nn.Sequential:
    """Build a small network with layers of several kinds."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2),
    )  # fmt: skip


def steps(penalty: str, count: int) -> Iterator[int]:
    """Train by both ways of the regularizer, on batches of several sizes."""
    model = network()
    regularizer = convsim.Regularizer(model, penalty, coefficient=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(count):
        optimizer.zero_grad()
        loss = model(torch.randn(2 + step % 3, 3, 12, 12)).square().mean()
        if step % 2 or penalty in ("recommended", "decov"):  # on maps
            (loss + regularizer()).backward()
        else:
            loss.backward()
            regularizer.backward_()
        optimizer.step()
        regularizer.step()
        yield step


def batches(count: int, seen: list[int]) -> Iterator[Tensor]:
    """Make up batches of images; leave the process's memory in `seen` as they go."""
    for batch in range(count):
        if batch == count // 5:
            seen.append(resident())
        yield torch.randn(BATCH, 3, 12, 12)


def resident() -> int:
    """Return how much memory the process holds, in bytes."""
    gc.collect()
    status = Path("/proc/self/status").read_text()  # Linux
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def growth(name: str, count: int) -> int:
    """Run, and return by how many bytes memory grew over the last four fifths."""
    seen: list[int] = []
    if name == "images":
        report = convsim.measure(network(), batches(count, seen))
        assert report.images == count * BATCH
    else:
        for step in steps(name, count):
            if step == count // 5:
                seen.append(resident())
    return resident() - seen[0]


def main() -> None:
    """Run what the record lacks; exit with 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps and images")
    share = parser.parse_args().share
    record, failed = Record("memory"), False
    for name, full in RUNS.items():
        key = {"run": name, "count": round(full * share), "source": digest_of("src")}
        found = record.find(**key) or record.add(**key, growth=growth(name, key["count"]))
        unit = f"batches of {BATCH} images" if name == "images" else f"steps of {name!r}"
        print(f"{key['count']} {unit}: memory grew by {found['growth'] / 1024:.0f} KiB", flush=True)
        failed |= found["growth"] > ALLOWED
    sys.exit(failed)


if __name__ == "__main__":
    main()
