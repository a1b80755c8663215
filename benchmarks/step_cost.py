"""Time whole training steps with each penalty beside the plain step, in every arithmetic.

    python benchmarks/step_cost.py            # a quarter of an hour or more on 2 quiet cores
    python benchmarks/step_cost.py --quick    # `make bench-quick`: three minutes
    python benchmarks/step_cost.py --network resnet18
    python benchmarks/step_cost.py --tables   # print what is on record

All variants of a network take turns, step by step, so a ratio compares neighbours in time. Appends
every sample with its environment to results/step_cost.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from in_rounds import ratio, times
from torch import nn

from convsim import Regularizer
from convsim.lab.arithmetic import ARITHMETIC, Precision
from convsim.lab.models import build_model
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.tables import markdown_table
from convsim.penalties import ActivationPenalty

RESULTS = Path(__file__).parent / "results" / "step_cost.jsonl"
OURS = ("recommended", "crossed")
PENALTIES = (*OURS, "cosine", "decov")
PLAIN = "plain"
SETTINGS: list[tuple[str, int, int, int, tuple[str, ...]]] = [
    # model, batch, size, rounds, penalties; on 2,048 maps a step of DeCov takes minutes
    ("cnn", 128, 32, 60, PENALTIES),
    ("resnet18", 128, 32, 15, PENALTIES),
    ("resnet50", 32, 64, 9, OURS),
]
QUICK = [("cnn", 128, 32, 15, PENALTIES), ("resnet18", 128, 32, 5, PENALTIES)]
HEAD = ("network, batch, size", "arithmetic", "plain, ms", *PENALTIES)


def training_steps(
    name: str,
    batch: int,
    size: int,
    precision: Precision,
    penalties: Sequence[str],
    device: str = "cpu",
) -> dict[str, Callable[[], Any]]:
    """Build SGD steps without a penalty and with each."""
    layout = ARITHMETIC[precision].memory_format
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    labels = torch.randint(10, (batch,), device=device)

    def build(penalty: str | None) -> Callable[[], Any]:
        width = {"width": 16} if name == "cnn" else {}
        model: nn.Module = build_model(name, classes=10, **width)
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
        regularizer = None if penalty is None else Regularizer(model, penalty)
        on_maps = regularizer is not None and isinstance(regularizer.penalty, ActivationPenalty)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                loss = nn.functional.cross_entropy(model(images), labels)
            if regularizer is not None and on_maps:
                loss = loss + regularizer()
            loss.backward()
            if regularizer is not None and not on_maps:
                regularizer.backward_()
            optimizer.step()

        return step

    return {PLAIN: build(None)} | {penalty: build(penalty) for penalty in penalties}


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out what was timed."""
    return markdown_table(
        HEAD,
        [
            (row["setting"], row["precision"], f"{median(samples[PLAIN]):.0f}",
             *(ratio(samples[one], samples[PLAIN]) if one in samples else "" for one in PENALTIES))
            for row in rows
            for samples in [row["milliseconds"]]
        ],
    )  # fmt: skip


def main() -> None:
    """Time, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two to five minutes")
    names = [name for name, *_ in SETTINGS]
    parser.add_argument("--network", nargs="+", choices=names, help="of those timed")
    parser.add_argument("--tables", action="store_true", help="print what is on record")
    chosen = parser.parse_args()
    if chosen.tables:
        print(table([record["row"] for record in read_records(RESULTS)]))
        return
    torch.manual_seed(0)
    precisions: list[Precision] = list(ARITHMETIC)
    rows = []
    for name, batch, size, rounds, penalties in QUICK if chosen.quick else SETTINGS:
        if chosen.network and name not in chosen.network:
            continue
        for precision in precisions:
            setting = f"{name}, {batch}, {size}×{size}"
            print(f"timing {setting}, {precision} …", file=sys.stderr)
            steps = training_steps(name, batch, size, precision, penalties)
            samples = times(steps, rounds)
            rows.append({"setting": setting, "precision": precision, "milliseconds": samples})
            record = {"schema": 1, "row": rows[-1], "environment": environment()}
            append_record(RESULTS, record)
    print(table(rows))


if __name__ == "__main__":
    main()
