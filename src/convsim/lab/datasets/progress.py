"""The progress bar of downloads and decoding, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress


def progress_bar(show: bool) -> Progress:
    """Make a bar that leaves stdout to results, and is gone when the work is done.

    Args:
        show: Whether to show anything at all.
    """
    return Progress(console=Console(stderr=True), transient=True, disable=not show)
