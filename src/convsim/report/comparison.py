"""Reports of one model side by side, each under a name: before and after, or several ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsim.errors import ConvsimError
from convsim.report.figures import report_figure
from convsim.report.frame import comparison_frame
from convsim.report.html import save_page
from convsim.report.layer_redundancy import LayerRedundancy
from convsim.report.model_redundancy import ModelRedundancy, common_layers
from convsim.report.page import html_page
from convsim.report.table import comparison_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group


@dataclass(frozen=True)
class RedundancyComparison:
    """Two reports or more, matched layer by layer by name; a layer may differ in its filters.

    ``RedundancyComparison({"plain": one, "penalty": two, "shrunk": three})``, in the order in which
    they are shown; `RedundancyReport.compare` names two "before" and "after".

    Attributes:
        reports: The reports by name.

    Raises:
        ConvsimError: If there are fewer than two, or they have no layer in common.
    """

    reports: Mapping[str, ModelRedundancy]

    def __post_init__(self) -> None:
        if len(self.reports) < 2:
            raise ConvsimError(
                f"A comparison needs two reports or more; got {len(self.reports)}. Give a mapping "
                'such as {"plain": report, "penalty": other}.'
            )
        if not self.layers:
            layers = "; ".join(
                f"{name} has {', '.join(layer.name for layer in report)}"
                for name, report in self.reports.items()
            )
            raise ConvsimError(
                f"The reports have no layer in common: {layers}. Measure one model several times."
            )

    @property
    def before(self) -> ModelRedundancy:
        """The first report."""
        return next(iter(self.reports.values()))

    @property
    def after(self) -> ModelRedundancy:
        """The last report."""
        return [*self.reports.values()][-1]

    @property
    def layers(self) -> tuple[tuple[LayerRedundancy, ...], ...]:
        """For each layer that all reports have, itself in each; in the order of the last."""
        return common_layers([*self.reports.values()])

    @property
    def similarity(self) -> float:
        """Change of the mean similarity, last less first: negative if maps became less alike."""
        return self.after.similarity - self.before.similarity

    def table(self) -> Group:
        """Lay the comparison out for the terminal. Needs rich."""
        return comparison_grid(self.reports).rich()

    __rich__ = table

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return comparison_grid(self.reports).html()

    def to_pandas(self) -> Any:
        """Return one row for each report and layer, as `RedundancyReport.to_pandas` does."""
        return comparison_frame(self.reports)

    def figure(self) -> Figure:
        """Draw similarity and correlation by layer, a line for each report. Needs matplotlib."""
        return report_figure(self.reports)

    def to_html(self) -> str:
        """Make one page of all reports, as `RedundancyReport.to_html`."""
        return html_page(self.reports)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file, in a folder that is made where it is missing."""
        save_page(self.to_html(), path)
