"""Files that cannot be read: an error at the first, or left out, counted and named."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_NAMED = 20


@dataclass
class Skipped:
    """What was left out of a data set.

    Attributes:
        allowed: Whether files may be left out at all.
        names: Those that were left out, in the order in which they were found.
    """

    allowed: bool = False
    names: dict[str, None] = field(default_factory=dict)

    def skip(self, name: str, error: Exception) -> None:
        """Leave a file out.

        Raises:
            Exception: The error, where none may be left out.
        """
        if not self.allowed:
            raise error
        self.note(name)

    def note(self, name: str) -> None:
        """Remember that a file was left out, each once."""
        self.names[name] = None

    def __str__(self) -> str:
        """Count and name them."""
        if not self.names:
            return "no file left out"
        files = "1 file" if len(self.names) == 1 else f"{len(self.names):,} files"
        shown = ", ".join([*self.names][:MOST_NAMED])
        more = f" and {len(self.names) - MOST_NAMED:,} more" if len(self.names) > MOST_NAMED else ""
        return f"{files} left out that cannot be read: {shown}{more}"
