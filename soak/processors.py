"""Numeric tests on every instruction set of this processor, with 1 and 2 threads, for two seeds.

    python soak/processors.py [--jobs 2]

A run is pytest in a process of its own, with torch, oneDNN and MKL kept to an instruction set, as
each picks its kernels by itself. Six runs hold every pair of set, thread count and seed;
one that the record holds for these sources is not run again. It exits with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import ROOT, Record, digest_of

from convsim.lab.records import environment

LIMITS = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""By the values of ATEN_CPU_CAPABILITY, the least first."""
SEEDS = (1, 2)  # `make test` takes 0
MARKED = re.compile(r"pytest\.mark\.(core|numeric)\b")
NUMBERS = "(core or numeric) and not (training or interpreted or traced)"


class Setting(NamedTuple):
    """What a run is kept to."""

    instructions: str
    threads: int
    seed: int

    def environment(self) -> dict[str, str]:
        """Return the variables that keep it."""
        return LIMITS[self.instructions] | {
            "ATEN_CPU_CAPABILITY": self.instructions,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # two runs may share a core
            "CONVSIM_TEST_SEED": str(self.seed),
        }


def settings(instructions: list[str]) -> list[Setting]:
    """Pair instruction sets with thread counts, and each pair with a seed, turn by turn."""
    pairs = [(name, threads) for name in instructions for threads in (1, 2)]
    return [Setting(*pair, SEEDS[(number + number // 2) % 2]) for number, pair in enumerate(pairs)]


def available() -> list[str]:
    """Return the instruction sets that this processor has, the least first."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    names = list(LIMITS)
    return names[: names.index(best) + 1] if best in names else names[:1]


def files() -> list[Path]:
    """Return the files that hold a numeric test; the others need not be imported."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in paths if MARKED.search(path.read_text(encoding="utf-8"))]


def run(setting: Setting, jobs: int) -> dict[str, Any]:
    """Run the tests; return what pytest says."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--tb=short",
    ]
    start, spent = time.monotonic(), _spent()
    done = subprocess.run(
        [*command, f"--numprocesses={jobs}", "-m", NUMBERS, *files()],
        env=os.environ | setting.environment(), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-2000:], file=sys.stderr)
    return {
        "status": done.returncode,
        "summary": lines[-1].strip("= ") if lines else "",
        "failed": [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")],
        "seconds": round(time.monotonic() - start),
        "cpu_seconds": round(_spent() - spent),  # what another job beside it changes less
    }


def _spent() -> float:
    now = os.times()
    return now.children_user + now.children_system


def main() -> int:
    """Run what the record lacks; print the last run of each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    jobs = parser.parse_args().jobs
    record, source = Record("processors"), digest_of("src", "tests")
    processor = environment()["processor"]
    failed = False
    print(processor)
    for setting in settings(available()):
        key = {**setting._asdict(), "source": source, "processor": processor}
        line = record.find(**key, status=0) or record.add(**key, **run(setting, jobs))
        failed |= line["status"] != 0
        print(
            f"{setting.instructions:<8} {setting.threads} threads, seed {setting.seed}: "
            f"{line['summary']}", flush=True,
        )  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
