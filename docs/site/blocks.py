"""Run the Python of a Markdown page: its blocks in order, one namespace, an empty folder."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a page's blocks printed, which files they wrote, and the names they left."""

    outputs: tuple[str, ...]
    files: dict[str, bytes]
    names: dict[str, Any]


@cache
def run(page: Path) -> Outcome:
    """Run a page's Python; a failure's traceback names the page and its line."""
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    outputs = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in BLOCK.finditer(text):
            above = "\n" * text.count("\n", 0, block.start(1))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(above + block[1], str(page), "exec"), names)
            outputs.append(printed.getvalue())
        files = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    return Outcome(tuple(outputs), files, names)


def with_outputs(page: Path) -> str:
    """Return a page's text with what each block printed below it."""
    outputs = iter(run(page).outputs)

    def show(block: re.Match[str]) -> str:
        printed = next(outputs).rstrip()
        return f"{block[0]}\n```text\n{printed}\n```\n" if printed else block[0]

    return BLOCK.sub(show, page.read_text(encoding="utf-8"))
