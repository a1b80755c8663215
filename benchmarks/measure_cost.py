"""Time of `convsim.measure` beside the plain forward passes, and its peak memory by images.

    python benchmarks/measure_cost.py            # both; appends to results/measure_cost.jsonl
    python benchmarks/measure_cost.py peak N     # peak memory over N images alone, in MiB

Time, by model: all of the call over 256 images, and what one more image costs, each as a ratio to
the forward passes alone; medians of three, alternating. Memory: a fresh process each.
"""

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import convsim
from convsim.lab.models import build_model
from convsim.lab.records import append_record, environment

MODELS = ("cnn", "resnet18", "vgg19", "wrn28-2", "resnet50")
IMAGES, FEW = 256, 64
RECORDS = Path(__file__).parent / "results" / "measure_cost.jsonl"


def batches(images, size=32):
    """Draw batches one at a time, as a DataLoader does."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, images, size):
        yield torch.randn(min(size, images - start), 3, 32, 32, generator=generator)


def seconds(call):
    """Time a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forward(model, images):
    """Run the forward passes alone."""
    with torch.no_grad():
        for batch in batches(images):
            model(batch)


def cost(name):
    """Time forward passes and measurement, over few images and over many."""
    model = build_model(name, classes=10).eval()
    forward(model, FEW)
    samples = [
        {
            f"{what} {images}": seconds(lambda: call(images))  # noqa: B023 - called at once
            for what, call in (
                ("forward", lambda n: forward(model, n)),
                ("measure", lambda n: convsim.measure(model, batches(n))),
            )
            for images in (FEW, IMAGES)
        }
        for _ in range(3)
    ]
    total = [s[f"measure {IMAGES}"] / s[f"forward {IMAGES}"] for s in samples]
    marginal = [
        (s[f"measure {IMAGES}"] - s[f"measure {FEW}"])
        / (s[f"forward {IMAGES}"] - s[f"forward {FEW}"])
        for s in samples
    ]
    print(
        f"{name:10} all {statistics.median(total):.2f}× ({min(total):.2f}–{max(total):.2f})  "
        f"one more image {statistics.median(marginal):.2f}× "
        f"({min(marginal):.2f}–{max(marginal):.2f})",
        flush=True,
    )
    return {"total": total, "marginal": marginal, "seconds": samples}


def peak(images):
    """Measure a ResNet-50 and return the process's peak resident memory in MiB."""
    convsim.measure(build_model("resnet50", classes=10), batches(images))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Run both and append one record."""
    if sys.argv[1:2] == ["peak"]:
        print(peak(int(sys.argv[2])))
        return
    times = {name: cost(name) for name in MODELS}
    command = [sys.executable, __file__, "peak"]
    peaks = {
        images: float(subprocess.check_output([*command, str(images)], text=True))
        for images in (200, 2000)
    }
    print(f"ResNet-50, peak memory: {peaks}, ratio {peaks[2000] / peaks[200]:.3f}")
    append_record(RECORDS, {"environment": environment(), "times": times, "peak_mib": peaks})


if __name__ == "__main__":
    main()
