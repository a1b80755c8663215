"""A redundancy report, and what can be made of it: table, JSON, figures, one HTML page."""

from convsim.report.comparison import RedundancyComparison
from convsim.report.layer_redundancy import (
    KernelRedundancy,
    LayerRedundancy,
    MapPair,
    Pictures,
    Twins,
)
from convsim.report.model_redundancy import ModelRedundancy, RankCorrelation
from convsim.report.redundancy_report import RedundancyReport

__all__ = [
    "KernelRedundancy",
    "LayerRedundancy",
    "MapPair",
    "ModelRedundancy",
    "Pictures",
    "RankCorrelation",
    "RedundancyComparison",
    "RedundancyReport",
    "Twins",
]
