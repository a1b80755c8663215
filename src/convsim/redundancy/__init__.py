"""Measure how alike a model's feature maps are on real inputs."""

from convsim.batches import Batch, Forward
from convsim.redundancy.measure import measure

__all__ = ["Batch", "Forward", "measure"]
