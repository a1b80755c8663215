"""Measure how alike a model's feature maps are on real inputs."""

from convsim.batches import Batch, Forward
from convsim.redundancy.measure import measure
from convsim.redundancy.probes import Place

__all__ = ["Batch", "Forward", "Place", "measure"]
