"""One stage's results on disk: written after every item, so that a kill loses one item at most."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
START_ANEW = 75
"""The exit code of a stage that wants a new process, to go on where it stands."""
_LARGEST_TRACEBACK = 6000
_POISONED = 4  # failures that need a new process, after which nothing like it is tried


class OutOfTimeError(Exception):
    """An item, or the whole stage, took longer than it may."""


class UnfitError(Exception):
    """A part of an item has left the process unfit; the item itself can be tried again."""


class Journal:
    """What a stage has found so far, and when it has to end.

    Args:
        path: The stage's JSON file. One that is there already is gone on with.
        stage: The stage's name.
        device: Where it runs.
        seconds: How long it may take.
    """

    def __init__(self, path: Path, stage: str, device: torch.device, seconds: float) -> None:
        self.path, self.device = path, device
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        before = json.loads(path.read_text()) if path.exists() else {}
        self.results: dict[str, Any] = before.get("results", {})
        self.failures: dict[str, Any] = before.get("failures", {})
        self.skipped: list[str] = []
        self._here: set[str] = set()
        self._before = before.get("seconds", 0.0)
        self._under_way: str | None = before.get("under way")
        self._head = {"stage": stage, "environment": environment(device)}
        if self._under_way is not None:
            self._fail(self._under_way, RuntimeError("the process died in it"), 0.0, True)
        self.save("running")

    @property
    def left(self) -> float:
        """How many seconds are left."""
        return self.deadline - time.monotonic()

    def attempt(
        self,
        name: str,
        item: Callable[[], dict[str, Any]],
        *,
        seconds: float = 30.0,
        poisons: bool = False,
        prepares: bool = False,
    ) -> Any:
        """Run one item and keep what it returns; keep its traceback if it fails.

        One that is in the file already is not run again; one for which no time is left is skipped,
        and so is one that may poison its process after four of that kind have.

        Args:
            name: The item's name.
            item: What to run.
            seconds: How long it may take.
            poisons: Whether its failure leaves the process unfit, as a failed capture does: then it
                ends, and `run` starts another one, which goes on.
            prepares: Whether it leaves something in memory for a later item, so that another
                process has to run it again.

        Returns:
            The result, or None.
        """
        known = name in self._here if prepares else name in self.results
        if known or name in self.failures:
            return self.results.get(name)
        hopeless = poisons and sum(own["poisons"] for own in self.failures.values()) >= _POISONED
        if self.left < 1 or hopeless:
            self.skipped.append(name)
            self.save("running")
            return None
        self.say(f"{name} …")
        self._under_way = name
        self.save("running")
        started = time.monotonic()
        try:
            with at_most(min(seconds, self.left)):
                found = item()
        except UnfitError as error:
            self._fail(str(error), error.__cause__ or error, time.monotonic() - started, True)
            raise SystemExit(START_ANEW) from error
        except Exception as error:
            poisons = poisons or _is_lost(error)
            self._fail(name, error, time.monotonic() - started, poisons)
            if poisons:
                raise SystemExit(START_ANEW) from error
            return None
        self._here.add(name)
        self._under_way = None
        self.results[name] = {"took": round(time.monotonic() - started, 3), **found}
        self.save("running")
        return self.results[name]

    def _fail(self, name: str, error: BaseException, took: float, poisons: bool) -> None:
        text = "".join(traceback.format_exception(error))
        self._under_way = None
        self.failures[name] = {
            "took": round(took, 3),
            "poisons": poisons,
            "error": f"{type(error).__name__}: {error}"[:500],
            "traceback": text[-_LARGEST_TRACEBACK:],
        }
        self.say(f"{name} FAILED: {type(error).__name__}: {str(error)[:200]}")
        self.save("running")

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def save(self, status: str) -> None:
        """Write the file, in place of the one before."""
        content = {
            **self._head,
            "status": status,
            "seconds": round(self._before + time.monotonic() - self.began, 1),
            "results": self.results,
            "failures": self.failures,
            "skipped": self.skipped,
            "under way": self._under_way,
        }
        scratch = self.path.with_suffix(".writing")
        scratch.write_text(json.dumps(_finite(content), indent=1) + "\n")
        scratch.replace(self.path)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in a block that takes longer, as soon as Python runs again."""

    def ring(*_: object) -> None:
        raise OutOfTimeError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a record to a file of JSON lines, on disk before this returns."""
    with path.open("a") as file:
        file.write(json.dumps(_finite(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; none if it is not there, and without a line that was cut off."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line]


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the code."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": "CPU",
        "commit": _commit(),
        "source": source_hash(),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "device": about.name,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory_GB": round(about.total_memory / 1e9, 1),
            "multiprocessors": about.multi_processor_count,
            "cache_MB": round(getattr(about, "L2_cache_size", 0) / 1e6, 1),
        }
    return found


def source_hash() -> str:
    """Name the code that ran by its content, for a copy of the tree knows no commit."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "convsim", Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_lost(error: Exception) -> bool:
    """Tell whether the device answers nothing any more, whatever it is asked."""
    words = (
        "illegal memory",
        "device-side assert",
        "misaligned",
        "unspecified launch",
        "uncorrect",
    )
    return any(word in str(error).lower() for word in words)


def _finite(value: Any) -> Any:
    """Spell out what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value
