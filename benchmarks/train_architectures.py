"""Train unmodified networks of timm for 20 steps without and with the penalty, and by it alone.

Handwritten digits at 64×64, 5 fixed batches of 16 in turn, AdamW at 1e-3. Checks that loss and
every gradient stay finite and that the penalty, with coefficient 1, falls: its mean over the
last 5 steps is below that over the first 5, on the same batches. What becomes of it without the
penalty, and where nothing but the penalty is minimised, is told beside.

A record for each network goes to results/train_architectures.jsonl; a second call goes on where the
first one stopped, until all have one of this commit. results/train_architectures.md is written from
them. `--only NAME …` prints alone.
"""

import argparse
import sys
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
STEPS, BATCHES, BATCH, SIZE = 20, 5, 16, 64
# The smallest or nearly so of each family.
NETWORKS = (
    "lcnet_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "mnasnet_small",
    "ghostnet_050", "mobilenetv2_050", "regnety_002", "starnet_s1", "dla46_c",
    "tf_efficientnet_lite0", "convnext_atto", "convnextv2_atto", "inception_next_atto",
    "edgenext_xx_small", "repvit_m0_9", "mobilevit_xxs", "pvt_v2_b0", "ese_vovnet19b_slim_dw",
    "resnet10t", "repvgg_a0", "mobileone_s0", "fastvit_t8", "nf_resnet26", "resnext26ts",
    "skresnet18", "poolformer_s12",
)  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load the digits in a seeded order, 64×64 with three channels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    order = order[: BATCHES * BATCH]
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1
    images = nn.functional.interpolate(images, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    return images, torch.tensor(data.target)[order]


def train(name: str, task: float, coefficient: float) -> dict[str, Any]:
    """Train one network on task · cross-entropy + the penalty, and tell what became of that."""
    images, labels = (part.split(BATCH) for part in digits())
    torch.manual_seed(0)
    model = library_model(f"timm:{name}", classes=10, channels=3, pretrained=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    regularizer = convsim.Regularizer(model, coefficient=coefficient)
    finite, values = True, []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[step % BATCHES]), labels[step % BATCHES])
        values.append(sum(regularizer.values().values()) / len(regularizer.acting))
        loss = task * loss + regularizer()
        loss.backward()
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        finite &= all(bool(tensor.isfinite().all()) for tensor in (loss, *gradients))
    return {
        "finite": finite,
        "before": sum(values[:BATCHES]) / BATCHES,
        "after": sum(values[-BATCHES:]) / BATCHES,
        "values": values,
    }


RUNS = {"plain": (1.0, 0.0), "recommended": (1.0, 1.0), "alone": (0.0, 1.0)}
"""The weights of the loss and of the penalty."""


def trained(name: str) -> dict[str, Any]:
    """Train one network in every way."""
    return {"name": name} | {run: train(name, *weights) for run, weights in RUNS.items()}


def falls(row: dict[str, Any], run: str) -> bool:
    """Tell whether the penalty ends below its start."""
    fell: bool = row[run]["after"] < row[run]["before"]
    return fell


def page(records: list[dict[str, Any]]) -> str:
    """Lay the last record of every network out as a table."""
    rows = {r["name"]: r for r in records if r["name"] in NETWORKS and r.keys() >= RUNS.keys()}
    machine = next(iter(rows.values()))["environment"]
    finite = sum(all(row[run]["finite"] for run in RUNS) for row in rows.values())
    fell = {run: sum(falls(row, run) for row in rows.values()) for run in RUNS}
    lines = [
        f"# {len(rows)} unmodified networks of timm, {STEPS} steps each",
        "",
        "Written by `python benchmarks/train_architectures.py`, which says what is measured; torch "
        f"{machine['torch']}, {machine['processor']}, commit {machine['commit'][:9]}. Mean over "
        "layers, without the coefficient.",
        "",
        f"Loss and gradients stay finite for {finite} of {len(rows)}. The penalty falls for "
        f"**{fell['recommended']}** with coefficient 1, for {fell['plain']} without it, "
        f"and for {fell['alone']} where nothing else is minimised.",
        "",
        "| network | without: first 5 steps | last 5 | with: first 5 | last 5 | alone: first 5 | "
        "last 5 | falls with it |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in rows.items():
        cells = [f"{row[run][when]:.4f}" for run in RUNS for when in ("before", "after")]
        verdict = "yes" if falls(row, "recommended") else "NO"
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict} |")
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
        print(
            name,
            *(f"{run} {row[run]['before']:.4f} → {row[run]['after']:.4f}" for run in RUNS),
            flush=True,
        )
        if not only:
            append_record(RECORDS, {**row, "environment": machine})
            PAGE.write_text(page(read_records(RECORDS)), encoding="utf-8")


if __name__ == "__main__":
    main()
