"""Time networks shrunk to half of their multiplications beside the originals, on one core.

    python benchmarks/shrink_speed.py

Networks of timm with random weights, 32 images of 64×64 a pass; every layer is cut by the same
share, to channels in multiples of 1, 8 and 16. Original and smaller networks take turns. One record
a network goes to results/shrink_speed.jsonl, and results/shrink_speed.md is made of the last of
each.
"""

import argparse
import copy
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from in_rounds import Samples, ratio, times
from torch import nn

import convsim
from convsim.lab.arithmetic import ARITHMETIC
from convsim.lab.libraries import library_model
from convsim.lab.records import append_record, environment, read_records
from convsim.lab.tables import markdown_table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE = RESULTS / "shrink_speed.jsonl", RESULTS / "shrink_speed.md"
NETWORKS = ("timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100")
SHARE, MULTIPLES, SIZE, CALIBRATION, BATCH, ROUNDS = 0.5, (1, 8, 16), 64, 128, 32, 9


def run(name: str) -> dict[str, Any]:
    """Shrink one network to each multiple, and time all in every arithmetic."""
    torch.manual_seed(0)
    whole = library_model(name, classes=10, channels=3, pretrained=False).eval()
    images = torch.randn(CALIBRATION, 3, SIZE, SIZE)
    networks, left = {"whole": whole}, {}
    for multiple in MULTIPLES:
        shrunk = convsim.shrink(
            whole, images.split(BATCH), macs=SHARE, multiple_of=multiple,
            uniformly=True, in_sequence=False,
        )  # fmt: skip
        networks[str(multiple)], left[str(multiple)] = shrunk.model, shrunk.report.macs.share
    samples = {precision: timed(networks, images[:BATCH], precision) for precision in ARITHMETIC}
    return {"name": name, "macs": left, "samples": samples}


@torch.no_grad()
def timed(networks: dict[str, nn.Module], images: torch.Tensor, precision: str) -> Samples:
    """Time passes in one arithmetic: seconds of the processor."""
    layout = ARITHMETIC[precision].memory_format
    inputs = images.contiguous(memory_format=layout)
    passes = {
        key: partial(copy.deepcopy(network).to(memory_format=layout), inputs)  # type: ignore[call-overload]
        for key, network in networks.items()
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = times(passes, ROUNDS, clock=time.process_time)
    return {key: [1e-3 * one for one in own] for key, own in found.items()}


def table(records: list[dict[str, Any]]) -> str:
    """Write the page."""
    rows = []
    for one in {record["name"]: record for record in records}.values():
        for precision, samples in one["samples"].items():
            rows.append((
                one["name"].rpartition(":")[2], precision,
                f"{BATCH / median(samples['whole']):.0f}",
                *(ratio(samples[key], samples["whole"], 2) for key in map(str, MULTIPLES)),
            ))  # fmt: skip
    head = ("network", "arithmetic", "images a second, whole",
            *(f"time, multiples of {multiple}" for multiple in MULTIPLES))  # fmt: skip
    return (
        "# How fast half of the multiplications is\n\n"
        f"Time of a pass of {BATCH} images of {SIZE}×{SIZE} over that of the whole network, one "
        "core; median with\nquartiles. See `shrink_speed.py`.\n\n" + markdown_table(head, rows)
    )


def main() -> None:
    """Run and write the page."""
    from conftest import use_vision  # noqa: PLC0415

    use_vision()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    torch.set_num_threads(1)
    for name in parser.parse_args().only:
        append_record(RECORDS, run(name) | {"environment": environment()})
    PAGE.write_text(table(read_records(RECORDS)), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
