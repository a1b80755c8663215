"""Tables of text, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group

from convsim.report.table import Grid


def terminal_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, note: str = ""
) -> Group:
    """Lay rows out for the terminal, the first column to the left, with a note below."""
    return Grid(title, tuple(head), [tuple(row) for row in rows], note).rich()


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in Markdown, the first column to the left."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
