"""Tables of text, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from convsim.visible import visible


def as_text(text: str) -> Text:
    """Keep a name from being read as rich's markup, or obeyed by the terminal."""
    return Text(visible(text))


def terminal_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, note: str = ""
) -> Table:
    """Lay rows out for the terminal, the first column to the left, with a note below."""
    table = Table(
        title=as_text(title),
        caption=as_text(note) if note else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(head):
        # A name keeps its line; numbers fold where the terminal is narrow.
        table.add_column(
            name,
            justify="right" if i else "left",
            no_wrap=not i,
            overflow="fold" if i else "ellipsis",
        )
    for row in rows:
        table.add_row(*map(as_text, row))
    return table


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in Markdown, the first column to the left."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
