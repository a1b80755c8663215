"""Results on disk: JSON lines, appended atomically, each with the environment that made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from errno import ENOSPC
from pathlib import Path
from typing import Any

import torch

from convsim import strict_json
from convsim.errors import ConvsimError
from convsim.lab.files import writing
from convsim.version import __version__

Record = dict[str, Any]

SCHEMA = 2
"""Of new records. Schema 1 compared feature maps on the first test images in the data's order:
on one class, where data are sorted by class."""


def new_record(configuration: Record, result: Record) -> Record:
    """Make a record of a configuration's result, here and now."""
    return {
        "schema": SCHEMA,
        "key": record_key(configuration),
        "configuration": configuration,
        "result": result,
        "environment": environment(),
    }


def record_key(configuration: Record) -> str:
    """Name a configuration by its content: 16 hexadecimal digits."""
    canonical = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def append_record(path: Path, record: Record) -> None:
    """Append one record in a single write, flushed to disk before returning.

    A line that an earlier kill cut off is dropped first, so the file stays readable.

    Raises:
        ConvsimError: If the record holds a NaN or an infinity, which JSON cannot write.
        WriteError: If the disk is full or the folder cannot be written; older records stay.
    """
    try:
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ConvsimError(f"A record cannot be written to {path}: {error}.") from error
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            content = path.read_bytes()
            if not content.endswith(b"\n"):
                os.ftruncate(descriptor, content.rfind(b"\n") + 1)
            if os.write(descriptor, line) < len(line):
                raise OSError(ENOSPC, os.strerror(ENOSPC))  # the next append drops what fitted
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_records(path: Path) -> list[Record]:
    """Read all whole records; a last line cut off by a kill is left out.

    Raises:
        ConvsimError: If a whole line is not a JSON object in UTF-8, holds a number that is not
            finite, or has a key that is not that of its configuration; names the line.
    """
    if not path.exists():
        return []
    *lines, _cut_off = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = strict_json.loads(line)
        except ValueError as error:
            raise _no_record(path, number, str(error)) from error
        if not isinstance(record, dict):
            raise _no_record(path, number, "no JSON object")
        if "key" in record and record["key"] != record_key(record.get("configuration", {})):
            raise _no_record(path, number, "its key is not that of its configuration")
        records.append(record)
    return records


def _no_record(path: Path, line: int, reason: str) -> ConvsimError:
    return ConvsimError(
        f"{path}, line {line}: not a record ({reason}). Restore the file or delete that line."
    )


@contextlib.contextmanager
def report_damaged_record(where: object) -> Iterator[None]:
    """Name the file or comparison whose record has results that no run writes.

    Raises:
        ConvsimError: In place of the errors that reading such a result raises.
    """
    try:
        yield
    except ConvsimError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConvsimError(
            f"A record of {where} is damaged ({type(error).__name__}: {error}). Restore the file, "
            "or delete that line to run it again."
        ) from error


def environment() -> Record:
    """Describe the machine and the code: what a figure's reader has to know."""
    return {
        "convsim": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    """Ask git about the source tree; None where convsim does not run from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
