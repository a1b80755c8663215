"""Train unmodified networks of timm for 20 steps: without a penalty, recommended and crossed.

Handwritten digits at 64×64, batches of 4, AdamW. Checks that loss and every gradient stay finite,
that the crossed penalty falls, and that the recommended one ends lower than without it; whether it
falls below its start is told too, for training on the task alone raises it. Its value is taken on
64 other images, with the first and with the last weights.

A record for each network goes to results/train_architectures.jsonl; a second call goes on where the
first one stopped, until all have one of this commit. results/train_architectures.md is written from
them. `--only NAME …` prints alone.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import convsim
from convsim.lab.libraries import library_model
from convsim.lab.records import append_record, environment, read_records

sys.path.append(str(Path(__file__).parents[1] / "tests"))
RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "train_architectures.jsonl", RESULTS / "train_architectures.md"
STEPS, BATCH, SIZE, UNSEEN = 20, 4, 64, 64
# The smallest or nearly so of each family.
NETWORKS = (
    "resnet10t", "resnext26ts", "skresnet18", "nf_resnet26", "res2net50_14w_8s", "resnetv2_50",
    "tf_efficientnet_lite0", "mobilenetv2_050", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050", "mobileone_s0", "mobilevit_xxs", "mnasnet_small", "lcnet_035",
    "ghostnet_050", "repvgg_a0", "repvit_m0_9", "regnety_002", "convnext_atto", "convnextv2_atto",
    "inception_next_atto", "edgenext_xx_small", "densenet121", "dla46_c", "ese_vovnet19b_slim_dw",
    "poolformer_s12", "fastvit_t8", "starnet_s1", "pvt_v2_b0",
)  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load the digits in a seeded order, 64×64 with three channels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    order = order[: STEPS * BATCH + UNSEEN]
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1
    images = nn.functional.interpolate(images, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    return images, torch.tensor(data.target)[order]


def train(name: str, penalty: str, coefficient: float | None = None) -> dict[str, Any]:
    """Train one network; tell what became of the penalty, without its coefficient."""
    images, labels = digits()
    torch.manual_seed(0)
    model = library_model(f"timm:{name}", classes=10, channels=3, pretrained=False)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", convsim.ConvsimWarning)
        regularizer = convsim.Regularizer(model, penalty, coefficient=coefficient)
    if any(issubclass(warning.category, convsim.ConvsimWarning) for warning in caught):
        return {}  # there is nothing that it acts on
    regularizer.attach(optimizer)
    finite = True
    for i in range(0, STEPS * BATCH, BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[i : i + BATCH]), labels[i : i + BATCH])
        loss.backward()
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        finite &= all(bool(tensor.isfinite().all()) for tensor in (loss, *gradients))

    def value() -> float:
        torch.manual_seed(0)  # dropout
        with torch.no_grad():
            model(images[-UNSEEN:])
        values = [value for value in regularizer.values().values() if value]
        return sum(values) / len(values)

    after = value()
    model.load_state_dict(first)
    return {"finite": finite, "before": value(), "after": after}


def trained(name: str) -> dict[str, Any]:
    """Train one network in all three ways."""
    return {
        "name": name,
        "none": train(name, "recommended", coefficient=0.0),
        "recommended": train(name, "recommended"),
        "crossed": train(name, "crossed"),
    }


def holds(row: dict[str, Any]) -> bool:
    """Tell whether a network shows what it must."""
    runs = [run for run in (row["none"], row["recommended"], row["crossed"]) if run]
    crossed = row["crossed"]
    return (
        all(run["finite"] for run in runs)
        and row["recommended"]["after"] < row["none"]["after"]
        and (not crossed or crossed["after"] < crossed["before"])
    )


def page(records: list[dict[str, Any]]) -> str:
    """Lay the last record of every network out as a table."""
    rows = {record["name"]: record for record in records if record["name"] in NETWORKS}
    machine = next(iter(rows.values()))["environment"]
    held = sum(map(holds, rows.values()))
    fell = sum(row["recommended"]["after"] < row["recommended"]["before"] for row in rows.values())
    lines = [
        f"# {len(rows)} unmodified networks of timm, {STEPS} steps each",
        "",
        f"Written by `python benchmarks/train_architectures.py`, which says what is measured: torch "
        f"{machine['torch']}, {machine['processor']}, commit {machine['commit'][:9]}. Mean over "
        "layers, without the coefficient; a dash where there is no layer that the penalty acts on.",
        "",
        f"All that must hold holds for {held} of {len(rows)}; the recommended penalty ends below "
        f"its own start for {fell}.",
        "",
        "| network | finite | recommended, start | 20 steps without | 20 steps with "
        "| crossed, start | 20 steps with | holds |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in rows.items():
        runs = (row["none"], row["recommended"], row["crossed"])
        finite = all(run["finite"] for run in runs if run)
        numbers = [runs[0]["before"], runs[0]["after"], runs[1]["after"]]
        crossed = [f"{row['crossed'][key]:.4f}" if row["crossed"] else "–" for key in
                   ("before", "after")]  # fmt: skip
        cells = [name, "yes" if finite else "NO", *(f"{x:.4f}" for x in numbers), *crossed]
        lines.append("| " + " | ".join([*cells, "yes" if holds(row) else "NO"]) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Train what is asked for, or what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NAME")
    only = parser.parse_args().only
    from conftest import use_vision  # noqa: PLC0415 - on the path only now

    use_vision()
    machine = environment()
    done = {
        record["name"]
        for record in read_records(RECORDS)
        if record["environment"]["commit"] == machine["commit"]
    }
    for name in only or [name for name in NETWORKS if name not in done]:
        row = trained(name)
        print(row, "" if holds(row) else "FAILED", flush=True)
        if not only:
            append_record(RECORDS, {**row, "environment": machine})
            PAGE.write_text(page(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
