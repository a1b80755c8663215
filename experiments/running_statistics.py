"""Compare BatchNorm's running statistics after short training with statistics estimated anew.

python experiments/running_statistics.py OUT

Appends to OUT/records.jsonl and writes OUT/table.md; a second call goes on where it was stopped.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from convsim import Regularizer
from convsim.lab.datasets import load_dataset
from convsim.lab.preprocessing import Standardised
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

RATES, SCHEDULES, STEPS, COEFFICIENTS = (0.1, 0.3), ("constant", "annealed"), (40, 160), (0, 1, 3)
SEEDS, BATCH = range(5), 64
Place = tuple[float, str, int, int]


def network() -> nn.Sequential:
    """Build three convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    for into, out in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained(place: Place, seed: int, images: Tensor, labels: Tensor) -> nn.Module:
    """Train one network from a seed."""
    rate, schedule, steps, coefficient = place
    torch.manual_seed(seed)
    model = network()
    regularizer = Regularizer(model, coefficient=coefficient) if coefficient else None
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        if regularizer is not None:
            loss = loss + regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule == "annealed":
            annealing.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the share of images that a model labels correctly."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def table(records: list[dict[str, Any]]) -> str:
    """Lay out accuracy before and after re-estimating, and what that gains by seed."""
    found: dict[Place, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(tuple(record["place"]), []).append(record)
    rows = []
    for place, own in sorted(found.items()):
        running, anew = ([100 * float(one[name]) for one in own] for name in ("running", "anew"))
        gain = [b - a for a, b in zip(running, anew, strict=True)]
        scores = (Estimate.of(one).text(1, sign="") for one in (running, anew))
        rows.append((*map(str, place), *scores, Estimate.of(gain).text(1)))
    head = ("rate", "schedule", "steps", "coefficient", "running", "re-estimated", "gain, points")
    return markdown_table(head, rows)


def main() -> None:
    """Train what is not on record."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    path, data = out / "records.jsonl", load_dataset("digits")
    how = Standardised.of(data.train_images)
    train_images, test_images = data.train_images, data.test_images
    assert isinstance(train_images, Tensor)
    assert isinstance(test_images, Tensor)
    images, tests = how.batch(train_images), how.batch(test_images)
    done = {(*record["place"], record["seed"]) for record in read_records(path)}
    for place, seed in product(product(RATES, SCHEDULES, STEPS, COEFFICIENTS), SEEDS):
        if (*place, seed) in done:
            continue
        model = trained(place, seed, images, data.train_labels)
        scores = {"running": accuracy(model, tests, data.test_labels)}
        update_bn(images.split(BATCH), model.train())
        scores["anew"] = accuracy(model, tests, data.test_labels)
        record = {"place": place, "seed": seed, **scores, "environment": environment()}
        append_record(path, record)
    (out / "table.md").write_text(table(read_records(path)), encoding="utf-8")
    print(table(read_records(path)))


if __name__ == "__main__":
    main()
