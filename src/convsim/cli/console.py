"""Where commands write, how they show progress, and what their exit codes mean."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FOUND, MISUSED, FAILED, INTERRUPTED = 1, 2, 3, 130

talk = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 120)


def progress_bar(*, shown: bool = True) -> Progress:
    """Make a progress bar on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=talk,
        disable=not shown,
    )
