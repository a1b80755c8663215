"""Compare networks of equal parameters: trained small, or trained large and shrunk.

python experiments/smaller.py OUT DATA RUNS     (resumes; large networks are kept in RUNS)

Appends to OUT/records.jsonl and writes OUT/table.md.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.models import build_model
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.shrinking import accuracy_on, shrink_on, train_on_
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table
from convsim.lab.training import train

LARGE, SMALL = 32, {16: "1/4", 11: "1/8"}
"""Widths of the cnn, and about what share of the large one's parameters the small ones have."""
METHODS = {"none": "none", "sampled maps": "recommended@1:0.5"}
EPOCHS, FURTHER, SEEDS = 6, (0, 1), range(3)
FURTHER_RATE, CALIBRATION = 0.03, 2000
RECIPE = Recipe(
    model="cnn", width=LARGE, epochs=EPOCHS, lr=0.1, weight_decay=5e-4, augment=True,
    precision="bf16",
)  # fmt: skip
Key = dict[str, str | int]


def parameters(model: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def arms(data: ImageData, runs: Path, seed: int) -> Iterator[tuple[Key, float, int]]:
    """Train and shrink; yield what each network is, its accuracy and its parameters."""
    for name, method in METHODS.items():
        for width in SMALL:
            recipe = replace(RECIPE, width=width, epochs=EPOCHS + max(FURTHER))
            key: Key = {"seed": seed, "way": f"small, {name}", "width": width, "further": 0}
            model, _ = train(Run(parse_method(method), seed, recipe, data))
            yield key, accuracy_on(model.cpu(), data), parameters(model)
        large, _ = train(
            Run(parse_method(method), seed, RECIPE, data), runs / f"cnn-{LARGE}-{name}-{seed}"
        )
        large = large.cpu().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        key = {"seed": seed, "way": f"large, {name}", "width": LARGE, "further": 0}
        yield key, accuracy_on(large, data), parameters(large)
        for width in SMALL:
            share = parameters(build_model("cnn", classes=10, width=width)) / parameters(large)
            shrunk = shrink_on(
                large, data, images=CALIBRATION, target="parameters", share=share
            ).model
            for epochs in FURTHER:
                model = copy.deepcopy(shrunk).requires_grad_(True)
                if epochs:
                    train_on_(
                        model, data, epochs=epochs, lr=FURTHER_RATE, augment=True, precision="bf16"
                    )
                key = {"seed": seed, "way": f"shrunk, {name}", "width": width, "further": epochs}
                yield key, accuracy_on(model, data), parameters(model)


def table(records: list[dict[str, object]]) -> str:
    """Lay out accuracy by way and size, with the gain over the network trained small by none."""
    found: dict[tuple[object, ...], dict[object, float]] = {}
    for r in records:
        place = (r["width"], r["way"], r["further"])
        found.setdefault(place, {})[r["seed"]] = 100 * float(str(r["accuracy"]))
    rows = []
    for place, own in sorted(found.items(), key=str):
        width, way, further = place
        control = found.get((width, "small, none", 0), {})
        seeds = sorted(own.keys() & control.keys(), key=str)
        gain = Estimate.of([own[s] - control[s] for s in seeds]).text(1) if seeds else ""
        rows.append((
            SMALL.get(int(str(width)), "all"), str(way), str(further), str(len(own)),
            Estimate.of([*own.values()]).text(1, sign=""), "" if own == control else gain,
        ))  # fmt: skip
    head = ("parameters", "network", "epochs after", "seeds", "accuracy, %", "against small, none")
    return markdown_table(head, rows)


def main() -> None:
    """Train what is not on record."""
    out, archive, runs = (Path(text) for text in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    path, data = out / "records.jsonl", load_dataset(str(archive))
    for seed in SEEDS:
        if seed in {r["seed"] for r in read_records(path)}:
            continue
        lines = [
            {**key, "accuracy": accuracy, "parameters": count, "environment": environment()}
            for key, accuracy, count in arms(data, runs, seed)
        ]
        for line in lines:
            append_record(path, line)
        (out / "table.md").write_text(table(read_records(path)), encoding="utf-8")
    print(table(read_records(path)))


if __name__ == "__main__":
    main()
