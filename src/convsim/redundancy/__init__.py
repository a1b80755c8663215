"""Measure how alike a model's feature maps are on real inputs."""

from convsim.redundancy.measure import Batch, measure

__all__ = ["Batch", "measure"]
