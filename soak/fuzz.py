"""Coverage-guided fuzzing of the public functions: no crash, and no finite wrong number.

    python soak/fuzz.py [--seconds 600]

Atheris (`pip install atheris`) turns bytes into weights, geometries and options, guided by which
branches of convsim they reach; `tests/test_numbers.py` has the check against the slow oracle, and
names what counts as right. The corpus, in `results/corpus` (not kept in git), makes it resumable;
the first failure stops it and leaves the input in `results`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

from record import RESULTS, Record, digest_of

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("Fuzzing needs atheris: pip install atheris")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
with atheris.instrument_imports(include=["convsim"]):
    import convsim
    import test_numbers as numbers
import torch
from torch import nn

_SHAPES = (0, 1, 1, 2, 2, 3, 4)
_ODD = (0, -1, 1.5, True, None, "2", (1, 2), (), [1], 10**30, float("nan"))


def _weight(data: atheris.FuzzedDataProvider) -> torch.Tensor:
    shape = [_SHAPES[data.ConsumeIntInRange(0, 6)] for _ in range(data.ConsumeIntInRange(1, 5))]
    flat = [_element(data) for _ in range(int(torch.tensor(shape).prod()))]
    weight = torch.tensor(flat, dtype=torch.float64).reshape(shape)
    dtype = (*numbers.DTYPES, torch.int8, torch.bool, torch.complex64)[data.ConsumeIntInRange(0, 8)]
    weight = (
        weight.nan_to_num(0, 1, 1).to(dtype) if not dtype.is_floating_point else weight.to(dtype)
    )
    if weight.numel() and weight.dim() > 1 and dtype.itemsize > 1:
        lay_out = numbers.LAYOUTS[data.PickValueInList(sorted(numbers.LAYOUTS))]
        weight = lay_out(weight)
    return weight


def _element(data: atheris.FuzzedDataProvider) -> float:
    if data.ConsumeBool():
        return data.PickValueInList(numbers.SPECIAL)
    return data.ConsumeFloatInRange(-3, 3)


def _step(data: atheris.FuzzedDataProvider) -> object:
    return (
        data.PickValueInList(list(_ODD))
        if data.ConsumeIntInRange(0, 9) == 0
        else (data.ConsumeIntInRange(1, 4))
    )


def one_input(blob: bytes) -> None:
    """Turn bytes into one call of the public functions, and check what comes of it."""
    data = atheris.FuzzedDataProvider(blob)
    form = numbers.options_of(
        data.PickValueInList(["all", "adjacent", "none"]),
        data.PickValueInList(["crossed", "matched"]),
        data.PickValueInList(["unit", "raw"]),
        data.PickValueInList(["mean", "sum"]),
    )
    geometry = {name: _step(data) for name in ("stride", "dilation", "groups")}
    geometry["transposed"] = data.ConsumeBool()
    preset = data.PickValueInList(sorted(convsim.PRESETS))
    weight = _weight(data)
    try:
        convsim.convolutional_similarity(weight, **geometry, **form)
    except convsim.ConvsimError:
        return
    if weight.numel() <= 64 and all(
        type(step) is int and step < 100 for step in list(geometry.values())[:3]
    ):  # for the oracle is slow
        numbers.check_number(weight, geometry, form)
        numbers.check_gradient(weight, geometry, form)
    if weight.dim() == 4 and weight.dtype in (torch.float32, torch.float64):
        _check_model(weight, preset)


def _check_model(weight: torch.Tensor, preset: str) -> None:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    try:
        regularizer = convsim.Regularizer(nn.Sequential(layer), preset)
        layer(torch.ones(2, weight.shape[1], 6, 6, dtype=weight.dtype))
        value = regularizer().item()
        if preset != "decov":
            regularizer.backward_()
        if regularizer._acting and not weight.isfinite().all():
            assert not math.isfinite(value), (preset, value)
        convsim.initialize_(nn.Sequential(layer), "crossed", steps=1)
    except convsim.ConvsimError:
        pass


def main() -> None:
    """Fuzz for a while in a process of its own, and record how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.inside:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        atheris.Setup([sys.argv[0], *rest], one_input)
        atheris.Fuzz()
        return
    record, key = Record("fuzz"), {"source": digest_of("src"), "seconds": arguments.seconds}
    if found := record.find(**key, failed=False):
        print(json.dumps(found))
        return
    corpus = RESULTS / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in range(64):
        (corpus / f"random-{seed}").write_bytes(random.Random(seed).randbytes(400))
    options = [f"-max_total_time={arguments.seconds}", "-max_len=400", "-len_control=0",
               "-print_final_stats=1", "-rss_limit_mb=0", "-timeout=120", "-seed=1",
               f"-artifact_prefix={RESULTS}/"]  # fmt: skip
    command = [sys.executable, __file__, "--inside", *options, str(corpus)]
    started = time.monotonic()
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    stats = dict(
        line.removeprefix("stat::").split(":")
        for line in run.stderr.splitlines()
        if "stat::" in line
    )
    executed = int(stats.get("number_of_executed_units", "0"))
    if run.returncode:
        print(run.stderr[-6000:])
    found = record.add(
        **key, failed=run.returncode != 0, inputs=executed, corpus=len(list(corpus.iterdir())),
        took=round(time.monotonic() - started),
    )  # fmt: skip
    print(json.dumps(found))
    sys.exit(run.returncode != 0)


if __name__ == "__main__":
    main()
