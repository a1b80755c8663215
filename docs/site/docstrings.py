"""Let `Example:` in a docstring be what griffe calls `Examples:`, so that doctests show as code."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Rename the section of every object that has one."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename one object's."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
