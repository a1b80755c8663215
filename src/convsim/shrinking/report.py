"""What shrinking a network did, with its faces: JSON, a page, a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsim.report.html import save_page
from convsim.shrinking.changes import NetworkChange
from convsim.shrinking.table import shrink_grid
from convsim.version import __version__

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class ShrinkReport(NetworkChange):
    """What shrinking did to a network, as `NetworkChange` holds it, to show and to keep."""

    def to_json(self) -> str:
        """Write everything as JSON; numbers that are undefined are null."""
        layers = tuple(replace(layer, pictures=()) for layer in self.layers)
        content = asdict(replace(self, layers=layers))
        for layer in content["layers"]:
            del layer["pictures"]
        return json.dumps({"convsim": __version__, **_plain(content)}, allow_nan=False)

    def to_html(self) -> str:
        """Make one self-contained HTML page."""
        from convsim.shrinking.page import shrink_page  # noqa: PLC0415 - needed here alone

        return shrink_page(self)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file, whose folder is made."""
        save_page(self.to_html(), path)

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.parameters.before:,} → {self.parameters.after:,} parameters; "
            f"{self.output_error:.2%} of the outputs' variance lost on the calibration images."
        )

    def __rich__(self) -> Group:
        """Show it as a table (needs the extra ``report``)."""
        return shrink_grid(self).rich()

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return shrink_grid(self).html()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
