"""A redundancy report, and what can be made of it: table, JSON, figures, one HTML page."""

from convsim.report.comparison import RedundancyComparison
from convsim.report.layer_redundancy import KernelRedundancy, LayerRedundancy, MapPair, Pictures
from convsim.report.redundancy_report import RankCorrelation, RedundancyReport

__all__ = [
    "KernelRedundancy",
    "LayerRedundancy",
    "MapPair",
    "Pictures",
    "RankCorrelation",
    "RedundancyComparison",
    "RedundancyReport",
]
