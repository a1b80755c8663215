"""Find the kernel size from which Fourier transforms beat products of every two taps.

    python benchmarks/large_kernels.py [--device cuda]

Times value + gradient of the crossed and the matched form on layers of 64 filters, dense and in
groups of four, by each means in turn, and appends every sample to results/large_kernels.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from penalty_cost import times

from convsim.backends import compiled, eager
from convsim.backends.library import library
from convsim.backends.problem import Job
from convsim.kernels import kernel_bank
from convsim.lab.records import append_record, environment
from convsim.similarity import Options

RESULTS = Path(__file__).parent / "results" / "large_kernels.jsonl"
NEVER = 1 << 30


def variants(size: int, groups: int, channels: str, device: str) -> dict[str, object]:
    """Build the ways to value and gradient on one layer."""
    weight = torch.randn(64, 64 // groups, size, size, device=device)
    bank = kernel_bank(weight, groups=groups)
    job = Job(bank, torch.zeros_like(bank.filters))
    options = Options(channels=channels)  # type: ignore[arg-type]

    def by_eager(threshold: int) -> object:
        def run() -> None:
            eager._FOURIER_FROM[channels] = threshold
            eager.add_gradients_([job], 1.0, options)

        return run

    runs = {"products": by_eager(NEVER), "Fourier": by_eager(0)}
    if device == "cpu" and library() is not None and size**2 <= 441:
        compiled._MAX_TAPS = NEVER
        runs["compiled products"] = lambda: compiled.add_gradients_([job], 1.0, options)
    return runs


def main() -> None:
    """Time, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    milliseconds = {}
    names = ("products", "Fourier", "compiled products")
    print(f"| layer | {' | '.join(f'{name}, ms' for name in names)} |\n|---|---:|---:|---:|")
    for channels in ("crossed", "matched"):
        for groups in (1, 16):
            for size in (3, 5, 7, 9, 11, 13, 15, 21, 31):
                case = f"{channels}, {groups} groups, {size}×{size}"
                runs = variants(size, groups, channels, chosen.device)
                samples = times(runs, chosen.rounds, chosen.device)  # type: ignore[arg-type]
                milliseconds[case] = samples
                cells = [f"{median(samples[n]):.2f}" if n in samples else "" for n in names]
                print(f"| {case} | {' | '.join(cells)} |", flush=True)
    append_record(
        RESULTS,
        {"device": chosen.device, "milliseconds": milliseconds, "environment": environment()},
    )


if __name__ == "__main__":
    main()
