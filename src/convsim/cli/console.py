"""Where commands write, how they show progress, and what their exit codes mean."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from convsim.lab.datasets import ImageData
from convsim.lab.datasets.image_files import ImageFiles
from convsim.lab.terminal import Description
from convsim.visible import visible

FOUND, MISUSED, FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

talk = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 120)


def say(text: object, *, head: str = "") -> None:
    """Print one line on stderr, whatever is in it, after a head in bold red."""
    line = Text.assemble((head, "bold red"), visible(str(text).replace("\n", " ")))
    talk.print(line, soft_wrap=True)


def print_notes(data: ImageData) -> None:
    """Print what was done to a data set, and which files were left out since it was loaded."""
    for note in data.notes:
        say(note)
    files = data.test_images
    if isinstance(files, ImageFiles) and files.skipped.names:
        left_out = f"{files.skipped}."
        if left_out not in data.notes:
            say(left_out)


def counter(progress: Progress, what: str, total: float | None = None) -> Callable[..., None]:
    """Add a bar; return what tells it how much is done and, if that was not known, of how much."""
    task = progress.add_task(what, total=total)
    return lambda done, total=total: progress.update(task, completed=done, total=total)


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
