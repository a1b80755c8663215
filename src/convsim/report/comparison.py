"""Two reports of one model, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convsim.errors import ConvsimError
from convsim.report.figures import report_figure
from convsim.report.html import save_page
from convsim.report.layer_redundancy import LayerRedundancy
from convsim.report.model_redundancy import ModelRedundancy, common_layers
from convsim.report.page import html_page
from convsim.report.table import comparison_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class RedundancyComparison:
    """Two reports, matched layer by layer by name; a layer may have lost filters in between.

    Raises:
        ConvsimError: If they have no layer in common.
    """

    before: ModelRedundancy
    after: ModelRedundancy

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConvsimError(
                "The two reports have no layer in common: before has "
                f"{', '.join(x.name for x in self.before.layers)}; after has "
                f"{', '.join(x.name for x in self.after.layers)}. Measure one model twice."
            )

    @property
    def layers(self) -> tuple[tuple[LayerRedundancy, LayerRedundancy], ...]:
        """(before, after) of each layer that both reports have, in the order of the later."""
        return common_layers(self.before, self.after)

    @property
    def similarity(self) -> float:
        """Change of the model's mean similarity: negative if maps became less alike."""
        return self.after.similarity - self.before.similarity

    def table(self) -> Table:
        """Lay the comparison out for the terminal. Needs rich."""
        return comparison_table(self.before, self.after)

    __rich__ = table

    def figure(self) -> Figure:
        """Draw similarity and correlation by layer, before and after. Needs matplotlib."""
        return report_figure(self.after, self.before)

    def to_html(self) -> str:
        """Make one page of both reports, as `RedundancyReport.to_html`."""
        return html_page(self.after, self.before)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file, in a folder that is made where it is missing."""
        save_page(self.to_html(), path)
