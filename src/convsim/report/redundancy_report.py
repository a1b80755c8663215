"""What `convsim.measure` returns: the redundancy of every layer, and its faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsim.report.comparison import RedundancyComparison
from convsim.report.figures import layer_figure, report_figure
from convsim.report.frame import report_frame
from convsim.report.html import save_page
from convsim.report.json_format import from_json, to_json
from convsim.report.model_redundancy import ModelRedundancy
from convsim.report.page import html_page
from convsim.report.table import report_grid
from convsim.report.verdict import verdict
from convsim.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group


class RedundancyReport(ModelRedundancy):
    """Feature-map redundancy of a model on some images, frozen: a sequence of layers by name.

    ``report["layer1.0"]`` is a layer, ``"layer1.0" in report`` tells whether it is there,
    ``for layer in report`` and ``len(report)`` go over all. What it holds is documented at
    `convsim.report.ModelRedundancy`.
    """

    def compare(self, after: ModelRedundancy) -> RedundancyComparison:
        """Compare this report with a later one, layer by layer, by name.

        `RedundancyComparison` compares more than two, under names of their own.
        """
        return RedundancyComparison({"before": self, "after": after})

    @property
    def verdict(self) -> str:
        """What to do about it, with the numbers that say so, in a few sentences."""
        return verdict(self)

    def to_json(self) -> str:
        """Write the whole report as JSON, of the schema that `from_json` reads.

        Matrices keep 11 bits (float16, relative error 5e-4); all else is exact. Size: about 8 bytes
        for every pair of filters of a layer.
        """
        return to_json(self)

    @staticmethod
    def from_json(text: str | bytes) -> RedundancyReport:
        """Read what `to_json` wrote.

        Raises:
            ConvsimError: If the text is no report, or of a schema that this version cannot read.
        """
        return RedundancyReport(**vars(from_json(text)))

    def table(self, *, verbose: bool = False) -> Group:
        """Lay the report out for the terminal, as ``rich.print`` does on its own. Needs rich.

        Args:
            verbose: Whether also to show what the kernels alone say, which needs a wide terminal.
        """
        return report_grid(self, verbose=verbose).rich()

    def __rich__(self) -> Group:
        return self.table()

    def __str__(self) -> str:
        """Say it in a few sentences; ``rich.print`` shows the table."""
        return (
            f"{visible(self.model)}, {self.images:,} images, similarity {self.similarity:.3f}. "
            f"{self.verdict}"
        )

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return report_grid(self).html()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with one row a layer, by name. Needs pandas."""
        return report_frame(self)

    def figure(self) -> Figure:
        """Draw similarity and correlation by layer. Needs matplotlib."""
        return report_figure({"": self})

    def layer_figure(self, name: str) -> Figure:
        """Draw a layer's pair matrix and the distribution of its pairs. Needs matplotlib.

        Raises:
            ConvsimError: If the report has no such layer.
        """
        return layer_figure(self[name])

    def to_html(self) -> str:
        """Make one HTML page that needs nothing else and asks no network for anything."""
        return html_page({"": self})

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file, in a folder that is made where it is missing."""
        save_page(self.to_html(), path)
