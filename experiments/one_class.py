"""Train two methods anew and compare their feature maps on one class, by class, and on all images.

python experiments/one_class.py RECORDS OUT DATA     (resumes if stopped)

Writes records.jsonl, with a similarity by layer for each set of images, and table.md to OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from frontier import chosen_by

from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.files import locked
from convsim.lab.measuring import measure_on
from convsim.lab.records import Record, append_record, read_records
from convsim.lab.runs import Run
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table
from convsim.lab.training import train

SETS = {"one class": "first 256", "by class": "256 by class", "all": "all 5,000"}


def images_of(data: ImageData) -> dict[str, ImageData]:
    """Take the three sets of test images, standardised as training standardised them."""
    kept = data.hold_out(0.1)
    part = {"train_images": kept.train_images, "train_labels": kept.train_labels}
    first = {"test_images": data.test_images[:256], "test_labels": data.test_labels[:256]}
    sets = {"one class": replace(data, **first), "by class": data.to_measure(256), "all": data}
    return {name: replace(own, fingerprint="", **part) for name, own in sets.items()}


def compared(run: Run, sets: dict[str, ImageData]) -> Record:
    """Train a run, and measure the network on every set."""
    network, record = train(run)
    similarities = {
        name: {layer.name: layer.similarity for layer in measure_on(network, images).layers}
        for name, images in sets.items()
    }
    record["result"]["similarities"] = similarities
    return record


def table(records: Sequence[Record]) -> str:
    """Lay out similarity on each set: mean over layers and its change, then layer by layer."""
    by_method: dict[str, list[Record]] = {}
    for record in records:
        name = record["configuration"]["method"]["name"]
        by_method.setdefault(name, []).append(record["result"]["similarities"])
    control, method = by_method.values()
    means = {
        (name, where): [fmean(one[where].values()) for one in own]
        for name, own in by_method.items()
        for where in SETS
    }
    changes = {
        where: Estimate.of([
            fmean(b[where].values()) - fmean(a[where].values())
            for a, b in zip(control, method, strict=True)
        ])
        for where in SETS
    }  # fmt: skip
    over_layers = [
        (SETS[where], *(Estimate.of(means[name, where]).text(3, sign="") for name in by_method),
         changes[where].text(3))
        for where in SETS
    ]  # fmt: skip
    layers = list(control[0]["all"])
    by_layer = [
        (f"{name}, {SETS[where]}", *(f"{fmean(one[where][layer] for one in own):.3f}"
                                     for layer in layers))
        for name, own in by_method.items()
        for where in SETS
    ]  # fmt: skip
    return "\n".join([
        markdown_table(("images", *by_method, "change"), over_layers),
        markdown_table(("layer", *layers), by_layer),
    ])  # fmt: skip


def main() -> None:
    """Train what is not on record yet, and write the table."""
    source, out, archive = sys.argv[1:]
    folder, data = Path(out), load_dataset(archive).subset(train=10000, seed=0)
    sets, path = images_of(data), folder / "records.jsonl"
    runs = [
        Run(method, seed, recipe, data)
        for method, recipe in chosen_by(Path(source)).values()
        for seed in range(3)
    ]
    with locked(folder):
        done = {record["key"]: record for record in read_records(path)}
        for number, run in enumerate(runs, 1):
            if run.key not in done:
                done[run.key] = compared(run, sets)
                append_record(path, done[run.key])
            print(run.method.name, number, len(runs), file=sys.stderr)
    (folder / "table.md").write_text(table([done[run.key] for run in runs]), encoding="utf-8")


if __name__ == "__main__":
    main()
