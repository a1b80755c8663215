"""A report as a pandas data frame: one row a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convsim.errors import require
from convsim.report.verdict import alike

if TYPE_CHECKING:
    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

_OF_MAPS = (
    "name", "kind", "filters", "pixels", "similarity", "correlation", "effective_rank", "dead",
    "spare",
)  # fmt: skip
_OF_KERNELS = ("mean_cosine", "mean_similarity", "bound")


def report_frame(report: ModelRedundancy) -> Any:
    """Return a DataFrame with one row a layer, by name; NaN where a value is undefined."""
    pandas = require("pandas", "report")
    return pandas.DataFrame([_row(layer) for layer in report]).set_index("name")


def comparison_frame(reports: Mapping[str, ModelRedundancy]) -> Any:
    """Return a DataFrame with one row for each report and layer, by both names."""
    pandas = require("pandas", "report")
    frames = {name: report_frame(report) for name, report in reports.items()}
    return pandas.concat(frames, names=["report", "name"])


def _row(layer: LayerRedundancy) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(layer, name) for name in _OF_MAPS}
    row["alike"] = alike(layer)
    for name in _OF_KERNELS:
        row[f"kernels_{name}"] = getattr(layer.kernels, name, float("nan"))
    return row
