"""What a long run has found so far: one JSON line each, with commit and machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("CONVSIM_SOAK", ROOT / "soak/results"))


class Record:
    """Lines of `results/NAME.jsonl`, appended one by one so that a run can stop at any time.

    Args:
        name: The part of the soak.
    """

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a line that a crash cut short is dropped
        if whole != text:
            self.path.write_text(whole)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def find(self, **key: Any) -> dict[str, Any] | None:
        """Return the last line with these values, None if there is none."""
        matching = (line for line in reversed(self.lines) if key.items() <= line.items())
        return next(matching, None)

    def add(self, **values: Any) -> dict[str, Any]:
        """Append a line and return it."""
        line = {**values, **_environment()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)
        return line


def digest_of(*folders: str) -> str:
    """Return a short digest of the Python sources in folders of the repository."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _environment() -> dict[str, Any]:
    def git(*words: str) -> str:
        command = ["git", *words]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "src")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
