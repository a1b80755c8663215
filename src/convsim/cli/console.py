"""Where commands write, how they show progress, and what their exit codes mean."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from convsim.lab.terminal import Description
from convsim.visible import visible

FOUND, MISUSED, FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

talk = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 120)


def say(text: object, *, head: str = "") -> None:
    """Print one line on stderr, whatever is in it, after a head in bold red."""
    line = Text.assemble((head, "bold red"), visible(str(text).replace("\n", " ")))
    talk.print(line, soft_wrap=True)


def progress_bar(*, shown: bool = True) -> Progress:
    """Make a progress bar on stderr."""
    return Progress(
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
        disable=not shown,
    )
