"""Time value + gradient of the penalties beside their rivals, as ratios within one run.

    python benchmarks/penalty_cost.py              # ResNet-18 and the growth with M, minutes
    python benchmarks/penalty_cost.py --all        # every weight list
    python benchmarks/penalty_cost.py --device cuda --all [--rival NAME=module:function]

On a GPU it also times a CUDA graph of the crossed penalty, fails if that penalty waits for
the device, and takes rivals that are installed there, as functions of one weight, such as the
authors' CUDA extension.

Appends every sample with its environment to results/penalty_cost.jsonl; `--tables` prints the
tables of its last record again, and draws results/growth.png.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from in_rounds import Samples, times
from rivals import RIVALS, by_autograd, direct_sum
from torch import nn
from torch.profiler import ProfilerActivity, profile
from weight_lists import CASES, LAYERS

from convsim import ConvolutionalSimilarity, ConvsimError, Regularizer
from convsim.lab.records import append_record, environment, read_records

RESULTS = Path(__file__).parent / "results" / "penalty_cost.jsonl"
OURS = {
    "crossed": ConvolutionalSimilarity(),
    "matched, unit": ConvolutionalSimilarity(channels="matched"),
    "authors": "authors",
}
WITHOUT_OCNN = {"wrn28-10", "unet3d"}  # where it takes minutes
DIRECT = "layer-256"  # the direct sum over a whole ResNet-18 takes minutes


def variants(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """Build every way to a gradient on one model's convolutions."""
    ours = {name: Regularizer(model, penalty) for name, penalty in OURS.items()}
    loss = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)
    runs = (
        {name: by_autograd(model, penalty) for name, penalty in RIVALS.items()}
        | {f"{name}, backward_()": one.backward_ for name, one in ours.items()}
        | {"crossed, loss + regularizer()": lambda: (loss + ours["crossed"]()).backward()}  # noqa: PLW0108
        | {"floor: read, read, write the gradient": floor(model)}
    )
    if next(model.parameters()).is_cuda:
        runs["crossed, CUDA graph"] = captured(ours["crossed"].backward_)
    return runs


def captured(run: Callable[[], Any]) -> Callable[[], None]:
    """Capture a run in a CUDA graph, having made sure that it waits for nothing."""
    run()  # gradients are allocated, kernels built, tables sent
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def launches(run: Callable[[], Any], device: str) -> int:
    """Count what a run launches: kernels on a GPU, torch operations elsewhere."""
    kind = {"cuda": ProfilerActivity.CUDA, "cpu": ProfilerActivity.CPU}[device]
    run()
    with profile(activities=[kind]) as profiler:
        run()
    events = profiler.events()
    if device == "cuda":
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    return sum(event.name.startswith("aten::") and event.cpu_parent is None for event in events)


def rival(text: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Read NAME=module:function."""
    name, _, where = text.partition("=")
    module, _, function = where.partition(":")
    return f"{name}, autograd", getattr(import_module(module), function)


def floor(model: nn.Module) -> Callable[[], None]:
    """Move the bytes that any value and gradient must: weights twice, the gradient out and in."""
    weights = [p for p in model.parameters() if p.dim() > 2]

    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            torch.linalg.vector_norm(weight)
        for weight in weights:
            if weight.grad is not None:
                weight.grad.add_(weight, alpha=1e-30)

    return run


_MEMORY = """
import resource, sys
sys.path.insert(0, {folder!r})
import torch
from weight_lists import CASES
from penalty_cost import OURS
from rivals import RIVALS, by_autograd
from convsim import Regularizer
model = CASES[{case!r}]()
tiny = torch.nn.Conv2d(2, 2, 3)
def run(model):
    name = {variant!r}
    if name in OURS:
        return Regularizer(model, OURS[name]).backward_
    return by_autograd(model, RIVALS[name])
run(tiny)()  # whatever is loaded or built at first use
for p in model.parameters():
    p.grad = torch.ones_like(p)
step = run(model)
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step()
weights = sum(4 * p.numel() for p in model.parameters() if p.dim() > 2)
print(1024 * (status("VmHWM") - before) / weights)
"""


def peak_memory(case: str, variant: str) -> float:
    """Measure the peak resident memory beyond weights and gradients, ÷ the weights' bytes."""
    script = _MEMORY.format(folder=str(Path(__file__).parent), case=case, variant=variant)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def exponent(samples: dict[int, list[float]]) -> float:
    """Fit the exponent of growth with M, by least squares on the logarithms of the medians."""
    x = [math.log(m) for m in samples]
    y = [math.log(median(values)) for values in samples.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def table(case: str, samples: Samples) -> None:
    """Print medians and ratios of one case."""
    base = median(samples["L2, autograd"])
    rival = median(samples["soft orthogonality, autograd"])
    print(f"\n| value + gradient, {case} | median, ms | quartiles | ÷ L2 | ÷ soft orthogonality |")
    print("|---|---:|---:|---:|---:|")
    for name, values in samples.items():
        m, ordered = median(values), sorted(values)
        low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
        print(f"| {name} | {m:.2f} | {low:.2f}–{high:.2f} | {m / base:.2f} | {m / rival:.3f} |")


def growth(records: dict[str, Samples], picture: Path | None) -> None:
    """Print how time grows with the number of filters, and draw it."""
    sizes = [int(case.removeprefix("layer-")) for case in records]
    names = [name for name in next(iter(records.values())) if not name.startswith("floor")]
    by_name = {
        name: dict(zip(sizes, (samples[name] for samples in records.values()), strict=True))
        for name in names
    }
    print("\n| growth with M, C = 64, 3×3 | exponent | ms at M = 4096 |\n|---|---:|---:|")
    for name, samples in by_name.items():
        print(f"| {name} | {exponent(samples):.2f} | {median(samples[sizes[-1]]):.2f} |")
    if picture:
        from matplotlib.figure import Figure  # noqa: PLC0415 - drawn only on demand

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        for name, samples in by_name.items():
            axes.plot(sizes, [median(samples[m]) for m in sizes], marker="o", label=name)
        axes.set(xlabel="filters M (C = 64, 3×3)", ylabel="value + gradient, ms")
        axes.legend(fontsize=8)
        figure.savefig(picture, dpi=120)


def show(record: dict[str, Any], picture: Path | None) -> None:
    """Print a record's tables."""
    milliseconds = record["milliseconds"]
    for case, samples in milliseconds.items():
        if not case.startswith(("layer-", "step-", "direct")):
            table(case, samples)
    growth({c: s for c, s in milliseconds.items() if c.startswith("layer-")}, picture)
    direct = median(milliseconds["direct sum"]["direct sum"])
    for name in OURS:
        times_faster = direct / median(milliseconds[DIRECT][f"{name}, backward_()"])
        print(f"\n{name}, {DIRECT}: {times_faster:.0f}× faster than the direct sum over pairs")
    for case, samples in milliseconds.items():
        if case.startswith("step-"):
            plain = samples["plain step"]
            print(
                f"\n| {case.removeprefix('step-')}, batch 128 | median, ms | ÷ plain, quartiles |"
            )
            print("|---|---:|---:|")
            for name, values in samples.items():  # ratios within one round
                ratios = sorted(a / b for a, b in zip(values, plain, strict=True))
                low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
                share = f"{median(ratios):.3f} ({low:.3f}–{high:.3f})"
                print(f"| {name} | {median(values):.1f} | {share} |")
    steps = milliseconds.get("step-resnet18")
    if steps:
        own = median(milliseconds["resnet18"]["crossed, backward_()"])
        share = own / median(steps["plain step"])
        print(f"\nThe crossed penalty's own time is {share:.2%} of a plain ResNet-18 step.")
    for name, count in record.get("launches", {}).items():
        kind = "kernels" if record["device"] == "cuda" else "torch operations"
        print(f"{name}, ResNet-18: {count} {kind}")
    for name, ratio in record["memory"].items():
        print(f"Peak extra memory on ResNet-18, {name}: {ratio:.3f} × the weights' bytes")


def main() -> None:
    """Time, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--all", action="store_true", help="every weight list")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rival", action="append", default=[], type=rival, metavar="NAME=M:F")
    parser.add_argument("--tables", action="store_true", help="print the last record again")
    chosen = parser.parse_args()
    if chosen.tables:
        show(read_records(RESULTS)[-1], RESULTS.with_name("growth.png"))
        return
    torch.manual_seed(0)
    RIVALS.update(chosen.rival)
    device = chosen.device
    counts: dict[str, int] = {}
    milliseconds: dict[str, Samples] = {}
    for case, build in (CASES if chosen.all else {"resnet18": CASES["resnet18"]}).items():
        try:
            model = build().to(device)
        except ConvsimError as error:
            print(f"{case} is left out: {error}", file=sys.stderr)
            continue
        print(f"timing {case} …", file=sys.stderr)
        runs = variants(model)
        if case in WITHOUT_OCNN:
            del runs["OCNN, autograd"]
        milliseconds[case] = times(runs, chosen.rounds, device)
        if case == "resnet18":
            counts = {name: launches(run, device) for name, run in variants(model).items()}
    for case, build in LAYERS.items():
        milliseconds[case] = times(variants(build().to(device)), chosen.rounds, device)
    by_definition = {"direct sum": direct_sum(LAYERS[DIRECT]().to(device))}
    milliseconds["direct sum"] = times(by_definition, 3, device)
    memory = {} if device == "cuda" else {
        name: peak_memory("resnet18", name) for name in (*OURS, *list(RIVALS)[:2])
    }  # fmt: skip
    record = {
        "schema": 3, "device": device, "milliseconds": milliseconds, "memory": memory,
        "launches": counts, "environment": environment(),
    }  # fmt: skip
    append_record(RESULTS, record)
    show(record, RESULTS.with_name("growth.png"))


if __name__ == "__main__":
    main()
