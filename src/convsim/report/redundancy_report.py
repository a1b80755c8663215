"""What `convsim.measure` returns: the redundancy of every layer, frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convsim.errors import ConvsimError
from convsim.rank_correlation import rank_correlation
from convsim.report.comparison import RedundancyComparison
from convsim.report.figures import layer_figure, report_figure
from convsim.report.layer_redundancy import LayerRedundancy
from convsim.report.page import html_page
from convsim.report.table import report_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class RankCorrelation:
    """How well a quantity of the kernels ranks feature-map similarity: Spearman's, in [−1, 1].

    Attributes:
        layers: Across layers, between its mean and the layer's similarity.
        pairs: Across the pairs of a layer, mean over layers.
    """

    layers: float
    pairs: float


@dataclass(frozen=True)
class RedundancyReport:
    """Feature-map redundancy of a model on some images.

    Attributes:
        model: The model's name.
        images: How many images were measured.
        layers: By layer, in the order of the model's modules.
        examples: (images, 1 or 3, height, width) uint8, the images of `LayerRedundancy.pictures`.
    """

    model: str
    images: int
    layers: tuple[LayerRedundancy, ...]
    examples: Tensor = field(repr=False, compare=False)

    @property
    def similarity(self) -> float:
        """Mean of the layers' similarity, over the layers where it is defined."""
        return _mean(layer.similarity for layer in self.layers)

    @property
    def correlation(self) -> float:
        """Mean of the layers' correlation, over the layers where it is defined."""
        return _mean(layer.correlation for layer in self.layers)

    @property
    def dead(self) -> int:
        """Number of maps that are zero on every image."""
        return sum(layer.dead for layer in self.layers)

    @property
    def rank_correlations(self) -> dict[str, RankCorrelation]:
        """How well "kernel cosine" and "Convolutional Similarity" rank feature-map similarity.

        NaN where fewer than two layers, or no pairs, can be ranked.
        """
        convolutions = [(x, x.kernels) for x in self.layers if x.kernels is not None]
        measured = torch.tensor([layer.similarity for layer, _ in convolutions])

        def correlate(means: list[float], pairs: Iterable[float]) -> RankCorrelation:
            return RankCorrelation(rank_correlation(torch.tensor(means), measured), _mean(pairs))

        return {
            "kernel cosine": correlate(
                [kernels.mean_cosine for _, kernels in convolutions],
                [kernels.cosine_rank_correlation for _, kernels in convolutions],
            ),
            "Convolutional Similarity": correlate(
                [kernels.mean_similarity for _, kernels in convolutions],
                [kernels.similarity_rank_correlation for _, kernels in convolutions],
            ),
        }

    def __getitem__(self, name: str) -> LayerRedundancy:
        """Return the layer of that name.

        Raises:
            ConvsimError: If there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = ", ".join(repr(layer.name) for layer in self.layers)
        raise ConvsimError(f"The report has no layer {name!r}; it has {known}.")

    def compare(self, after: RedundancyReport) -> RedundancyComparison:
        """Compare this report with a later one, layer by layer, by name."""
        return RedundancyComparison(self, after)

    def scalars(self, prefix: str = "convsim/") -> dict[str, float]:
        """Flatten to numbers that a logger takes: TensorBoard, W&B, Lightning's ``log_dict``.

        Returns:
            "similarity", "correlation", "dead" of the model, and "similarity/NAME",
            "effective_rank/NAME" of each layer, after the prefix. Undefined values are left out.
        """
        values = {
            "similarity": self.similarity,
            "correlation": self.correlation,
            "dead": float(self.dead),
        }
        for layer in self.layers:
            values[f"similarity/{layer.name}"] = layer.similarity
            values[f"effective_rank/{layer.name}"] = layer.effective_rank
        return {prefix + key: value for key, value in values.items() if not math.isnan(value)}

    def to_json(self) -> str:
        """Write the whole report as JSON, of the schema that `from_json` reads.

        Matrices keep 11 bits (float16, relative error 5e-4); all else is exact. Size: about 8 bytes
        for every pair of filters of a layer.
        """
        from convsim.report.json_format import to_json  # noqa: PLC0415 - it needs this module

        return to_json(self)

    @staticmethod
    def from_json(text: str | bytes) -> RedundancyReport:
        """Read what `to_json` wrote.

        Raises:
            ConvsimError: If the text is no report, or of a schema that this version cannot read.
        """
        from convsim.report.json_format import from_json  # noqa: PLC0415 - it needs this module

        return from_json(text)

    def table(self) -> Table:
        """Lay the report out for the terminal, as ``rich.print`` does on its own. Needs rich."""
        return report_table(self)

    __rich__ = table

    def figure(self) -> Figure:
        """Draw similarity and correlation by layer. Needs matplotlib."""
        return report_figure(self)

    def layer_figure(self, name: str) -> Figure:
        """Draw a layer's pair matrix and the distribution of its pairs. Needs matplotlib.

        Raises:
            ConvsimError: If the report has no such layer.
        """
        return layer_figure(self[name])

    def to_html(self) -> str:
        """Make one HTML page that needs nothing else and asks no network for anything."""
        return html_page(self)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
