"""The progress bar of downloads and decoding, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from convsim.visible import visible


class Description(ProgressColumn):
    """What a bar is about, which may be a file's name: as text, without markup."""

    def render(self, task: Task) -> Text:
        """Return it."""
        return Text(visible(task.description))


def progress_bar(show: bool) -> Progress:
    """Make a bar that leaves stdout to results, and is gone when the work is done.

    Args:
        show: Whether to show anything at all.
    """
    return Progress(
        Description(),
        *Progress.get_default_columns()[1:],
        console=Console(stderr=True),
        transient=True,
        disable=not show,
    )
