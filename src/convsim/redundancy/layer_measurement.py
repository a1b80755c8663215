"""One layer while images stream by, and what is said of it in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.errors import ConvsimError, NonFiniteError
from convsim.redundancy.examples import ExampleImages, LayerExamples
from convsim.redundancy.input_autocorrelation import InputAutocorrelation
from convsim.redundancy.layer_summary import (
    effective_rank,
    kernel_redundancy,
    spare_maps,
    worst_pairs,
)
from convsim.redundancy.pair_statistics import PairStatistics
from convsim.redundancy.probes import Probe
from convsim.report.layer_redundancy import HISTOGRAM_BINS, LayerRedundancy


class LayerMeasurement:
    """What is measured of one layer: `add` each output, then take the `summary`."""

    def __init__(
        self, probe: Probe, images: ExampleImages, *, autocorrelation: bool, pooled: bool
    ) -> None:
        self.probe = probe
        self._pooled = pooled
        self._statistics: PairStatistics | None = None
        self._examples = LayerExamples(probe.bank, images)
        self._autocorrelation: InputAutocorrelation | None = None
        if autocorrelation and probe.bank is not None:
            self._autocorrelation = InputAutocorrelation(probe.name, probe.module, probe.bank)

    @property
    def reached(self) -> bool:
        """Whether the layer put anything out."""
        return self._statistics is not None

    def convolve(self, inputs: Sequence[Any], maps: Tensor) -> None:
        """Look at what the layer reads of a batch; `maps` are what leaves its convolution."""
        if self._autocorrelation is not None:
            self._autocorrelation.add(inputs[0], maps[0, 0].numel())
        self._examples.read(inputs)

    def add(self, maps: Tensor) -> None:
        """Add the layer's maps on a batch.

        Raises:
            ConvsimError: If it had another number of maps before.
            NonFiniteError: If a map holds NaN or infinity.
        """
        if self._statistics is None:
            self._statistics = PairStatistics(maps.shape[1], maps.device, pooled=self._pooled)
        known = len(self._statistics.live)
        if known != maps.shape[1]:
            raise ConvsimError(
                f"Module {self.probe.name!r} put out {known} maps and then {maps.shape[1]}: it is "
                "used in several places. Choose modules that are used in one."
            )
        if not self._statistics.add(maps.flatten(2)):
            raise NonFiniteError(
                f"Layer {self.probe.name!r} put out a feature map with NaN or infinite values. "
                "Check the inputs and the weights before it."
            )
        self._examples.add(maps)

    def summary(self) -> LayerRedundancy:
        """Put together what was measured, and what the kernels say."""
        statistics, bank = self._statistics, self.probe.bank
        assert statistics is not None
        matrix = statistics.absolute_cosine()
        pairs = matrix[torch.ones_like(matrix).triu(1).bool()]
        pairs = pairs[~pairs.isnan()]
        signed = statistics.signed_cosine()
        worst = worst_pairs(matrix, signed, bank)
        moment = statistics.second_moment()
        return LayerRedundancy(
            name=self.probe.name,
            kind=type(self.probe.module).__name__,
            filters=len(matrix),
            pixels=statistics.pixels,
            similarity=float(pairs.mean()),
            correlation=statistics.correlation(),
            effective_rank=effective_rank(signed),
            dead=int((~statistics.live).sum()),
            histogram=tuple(int(n) for n in torch.histc(pairs, HISTOGRAM_BINS, 0, 1).tolist()),
            worst=worst,
            matrix=matrix.float(),
            kernels=None
            if bank is None
            else kernel_redundancy(
                bank,
                matrix,
                self._examples.certificate(),
                None if self._autocorrelation is None else self._autocorrelation.mean(),
                bias=getattr(self.probe.module, "bias", None) is not None,
            ),
            pictures=self._examples.pictures(worst),
            pooled=statistics.pooled_cosine(),
            rms=statistics.root_mean_square(),
            spare=None if moment is None else spare_maps(moment, statistics.samples),
        )
