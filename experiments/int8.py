"""Quantize small networks to int8 after training: does the penalty's gain outlive it?

python experiments/int8.py OUT DATA WHEN RUNS     (resumes; networks are kept in RUNS)

WHEN holds experiment 19's results, whose coefficients and learning rates are taken. Appends to
OUT/records.jsonl and writes OUT/table.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from when import CELLS, chosen

from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.loading import prepared
from convsim.lab.methods import parse_method
from convsim.lab.preprocessing import Standardised
from convsim.lab.records import Record, append_record, environment, read_records
from convsim.lab.runs import Run
from convsim.lab.shrinking import accuracy_on, shrink_on
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table
from convsim.lab.training import train

CELL, TUNED_IN = CELLS["50000-usual-w16-e4"], "50000-usual-w16-e1"
METHODS = ("none", "recommended")
SHARES = (1.0, 0.5, 0.25)
"""Of the parameters that stay; below 1 the network is shrunk, without further training."""
SEEDS, BATCH, CALIBRATION = range(3), 100, 1000


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Batches, one after the other, as onnxruntime's calibration asks for them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        """Return the next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def int8_accuracy(model: nn.Module, data: ImageData) -> float:
    """Quantize weights by channel and activations by tensor; score in onnxruntime."""
    how = Standardised.of(data.train_images)
    calibration = data.subset(train=CALIBRATION, seed=0).train_images
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (str(Path(folder) / f"{name}.onnx") for name in ("f", "r", "i"))
        batches = [x.contiguous() for x in prepared(calibration, how, BATCH)]
        torch.onnx.export(
            model.eval().to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (batches[0],), plain, input_names=["images"], dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, small, Images(batches), per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
        tests = prepared(data.test_images, how, BATCH)
        logits = [session.run(None, {"images": x.contiguous().numpy()})[0] for x in tests]
    guesses = torch.cat([torch.from_numpy(own) for own in logits]).argmax(1)
    return float((guesses == data.test_labels).float().mean())


def networks(data: ImageData, when: Path, runs: Path, seed: int) -> Iterator[Record]:
    """Train by each method, shrink, quantize; yield what comes out."""
    for name in METHODS:
        method, rate = chosen(when / TUNED_IN / "records.jsonl", parse_method(name))
        recipe = replace(CELL.recipe, lr=rate)
        model, _ = train(Run(method, seed, recipe, data), runs / f"{name}-{seed}")
        model = model.cpu().eval()
        for share in SHARES:
            kept = model
            if share < 1:
                found = shrink_on(model, data, images=2000, target="parameters", share=share)
                kept = found.model
            yield {
                "seed": seed, "method": name, "share": share,
                "parameters": sum(p.numel() for p in kept.parameters()),
                "float32": accuracy_on(kept, data), "int8": int8_accuracy(kept, data),
            }  # fmt: skip


def table(records: list[Record]) -> str:
    """Lay out both accuracies, what int8 loses, and what the penalty gains in int8, by seed."""
    found: dict[tuple[float, str], dict[int, Record]] = {}
    for record in records:
        found.setdefault((record["share"], record["method"]), {})[record["seed"]] = record
    rows = []
    for (share, method), own in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1])):
        control, seeds = found[share, "none"], sorted(own)
        lost = [100 * (own[s]["int8"] - own[s]["float32"]) for s in seeds]
        gain = [100 * (own[s]["int8"] - control[s]["int8"]) for s in seeds if s in control]
        scores = (
            Estimate.of([100 * own[s][kind] for s in seeds]).text(1, sign="")
            for kind in ("float32", "int8")
        )
        rows.append((
            f"{own[seeds[0]]['parameters']:,}", method, str(len(seeds)), *scores,
            Estimate.of(lost).text(2), "" if method == "none" else Estimate.of(gain).text(1),
        ))  # fmt: skip
    head = ("parameters", "method", "seeds", "float32, %", "int8, %", "int8 − float32",
            "int8, against none")  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    """Train and quantize what is not on record."""
    out, archive, when, runs = (Path(text) for text in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    path, data = out / "records.jsonl", load_dataset(str(archive))
    for seed in SEEDS:
        if seed in {record["seed"] for record in read_records(path)}:
            continue
        for record in [*networks(data, when, runs, seed)]:
            append_record(path, record | {"environment": environment()})
        (out / "table.md").write_text(table(read_records(path)), encoding="utf-8")
    print(table(read_records(path)))


if __name__ == "__main__":
    main()
