"""What a report says of one layer: its maps, its most similar pairs, its kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convsim.errors import ConvsimError

HISTOGRAM_BINS = 20
SPARE_LOSS = 0.01
"""The share of the energy of a layer's maps that may be lost with `LayerRedundancy.spare`."""
INPUT_CLASSES = ("white", "common", "matched")
"""Of inputs, each within the next: the keys of `KernelRedundancy.energy`."""


@dataclass(frozen=True)
class MapPair:
    """Two feature maps of one layer.

    Attributes:
        first: Index of a filter.
        second: Index of another, above `first`.
        similarity: Their mean absolute cosine.
        kernel_cosine: Absolute cosine of the two filters; NaN if they do not share their input.
        convolutional_similarity: Of the two filters, crossed and unit; NaN likewise.
        cosine: The mean cosine of the maps with its sign: negative for maps that are each other's
            negative. NaN in reports of convsim 0.1.
    """

    first: int
    second: int
    similarity: float
    kernel_cosine: float = math.nan
    convolutional_similarity: float = math.nan
    cosine: float = math.nan


@dataclass(frozen=True)
class Twins:
    """Two maps of which one can go: the layers that read them can make up for it.

    Attributes:
        kept: Index of the map that stays.
        dropped: Index of the map that can go, once the layers that read it have added its weights,
            times `factor`, to those of the kept map.
        factor: What the kept map is multiplied by to come nearest to the dropped one, over all
            pixels and images; negative for negatives.
        lost: The share of the dropped map's energy that is lost then, 1 − cosine²: 0 for maps that
            are multiples of each other on all images.
    """

    kept: int
    dropped: int
    factor: float
    lost: float


@dataclass(frozen=True)
class KernelRedundancy:
    """What the kernels of a convolution say about its feature maps, without data.

    Filters of different groups read different inputs; only pairs of one group count, and the
    matrices are 0 between groups.

    Attributes:
        groups: The convolution's groups.
        mean_cosine: Mean of `cosine` over the pairs; NaN without pairs, as the next.
        mean_similarity: Mean of `similarity` over the pairs.
        norms: (filters,) float32, the filters' Euclidean norms.
        cosine: (filters, filters) float32, the absolute cosine of every two filters: what kernel
            orthogonality minimises.
        similarity: (filters, filters) float32, Convolutional Similarity, crossed and unit.
        cosine_rank_correlation: Spearman's, over pairs of the layer, between kernel cosine and
            feature-map similarity; NaN for fewer than five pairs. Of layers with more than 131,072
            pairs, that many are drawn.
        similarity_rank_correlation: The same with Convolutional Similarity. NaN where that is
            constant, as for 1×1 kernels.
        bound: The certificate's bound on the absolute cosine of two maps, √CS(i,j)·‖R‖ /
            (‖F_i‖‖F_j‖), mean over the pairs and the example images. 1 or more tells nothing.
        bounded: The absolute cosine it bounds: of the maps at full zero padding, without bias.
        directions: How many directions maps can have that are linear in what the filters read: in
            each group the filters, or the elements of one, and a constant if there is a bias, if
            these are fewer. None in reports of convsim 0.1.
        autocorrelation: (groups, C·n, C·n) float64, of the layer's inputs, for
            `convsim.expected_similarity`; None unless asked for. Left out of JSON.
        energy: Which share of its energy lies in each class of inputs, "white" within "common"
            within "matched": what kernel orthogonality, convolutional orthogonality and matched
            Convolutional Similarity protect against. None unless asked for.
    """

    groups: int
    mean_cosine: float
    mean_similarity: float
    norms: Tensor = field(repr=False, compare=False)
    cosine: Tensor = field(repr=False, compare=False)
    similarity: Tensor = field(repr=False, compare=False)
    cosine_rank_correlation: float
    similarity_rank_correlation: float
    bound: float
    bounded: float
    directions: int | None = None
    autocorrelation: Tensor | None = field(default=None, repr=False, compare=False)
    energy: dict[str, float] | None = None


@dataclass(frozen=True)
class Pictures:
    """The pairs of `LayerRedundancy.worst` as pictures, on each example image.

    Attributes:
        maps: (images, pairs, 2, height, width) uint8, each map from its least to its greatest
            value; large maps are averaged down. A 1-d map is one row; of a 3-d map the middle slice
            is kept.
        kernels: (pairs, 2, slices, height, width) int8, 127 standing for the pair's largest
            absolute weight: the channels that weigh most in the two filters. A 1×1 kernel is one
            slice with the weights of at most 64 channels. Empty for a module without kernels.
    """

    maps: Tensor
    kernels: Tensor


@dataclass(frozen=True)
class LayerRedundancy:
    """How much the feature maps of one layer repeat each other.

    Attributes:
        name: The layer's name in the model.
        kind: Its type, such as "Conv2d".
        filters: Its number of feature maps.
        pixels: The most pixels a map had.
        similarity: Mean absolute cosine similarity of two different feature maps of one image, over
            images and pairs, without those of a map that is zero on every image; in [0, 1]. NaN
            where no pair is left: for a layer with one filter, one whose maps are all zero, and for
            maps of one pixel, whose cosine is ±1 whatever they hold.
        correlation: The same with each map's mean over its pixels removed first, without the pairs
            of a map that is constant on every image.
        effective_rank: How many directions the maps really use, in [1, filters]: exp of the entropy
            of the eigenvalues over their sum (Roy and Vetterli 2007), of the mean over images of
            the Gram matrix of the maps, each scaled to norm 1. 0 if every map is zero.
        dead: Number of maps that are zero on every image.
        histogram: How many pairs have their mean absolute cosine in each twentieth of [0, 1].
        worst: The pairs most alike, at most eight, the worst first.
        matrix: (filters, filters) float32, on the CPU: the mean over images of the absolute cosine
            of every two maps, NaN where it is undefined. Left out of comparisons by ``==``, as are
            the next two.
        kernels: What the kernels say; None for a module that is no convolution.
        pictures: The worst pairs to look at; None if no example image was kept.
        pooled: (filters, filters) float32, the cosine with its sign of every two maps, each one
            vector over all pixels and images; NaN where undefined. None unless maps were compared
            where the next layer reads them.
        rms: (filters,) float32, each map's root mean square norm over images; None likewise.
        spare: How many maps can go so that at most 1 % of the energy of all, over pixels and
            images, is lost when those that stay tell the others, linearly and pixel by pixel: which
            layers to shrink first, before `convsim.shrink` weighs each loss by what the
            layers that read the maps make of it. None likewise, and for fewer than four pixels,
            over all images, for every map.
    """

    name: str
    kind: str
    filters: int
    pixels: int
    similarity: float
    correlation: float
    effective_rank: float
    dead: int
    histogram: tuple[int, ...] = field(repr=False)
    worst: tuple[MapPair, ...] = field(repr=False)
    matrix: Tensor = field(repr=False, compare=False)
    kernels: KernelRedundancy | None = field(repr=False, compare=False)
    pictures: Pictures | None = field(repr=False, compare=False)
    pooled: Tensor | None = field(default=None, repr=False, compare=False)
    rms: Tensor | None = field(default=None, repr=False, compare=False)
    spare: int | None = None

    def duplicates(self, threshold: float = 0.95) -> list[tuple[int, int, float]]:
        """List the pairs of maps whose mean absolute cosine is at least `threshold`.

        Returns:
            (i, j, value) with i < j, the most alike first.

        Raises:
            ConvsimError: If the threshold is outside [0, 1].
        """
        found = _pairs_above(self.matrix, threshold)
        pairs = [(i, j, float(self.matrix[i, j])) for i, j in found]
        return sorted(pairs, key=lambda pair: -pair[2])

    def twins(self, threshold: float = 0.95) -> list[Twins]:
        """List the pairs of maps that can be folded into one: multiples of each other.

        `duplicates` lists pairs that are alike image by image. Twins have, where the next layer
        reads them, one factor with its sign for all images, so that the weights of that layer can
        make up for the map that is dropped.

        Args:
            threshold: The least absolute cosine of the two maps over all pixels and images.

        Returns:
            The pairs, most alike first; the weaker map of each is the one to drop.

        Raises:
            ConvsimError: If the threshold is outside [0, 1], or maps were compared elsewhere.
        """
        if self.pooled is None or self.rms is None:
            raise ConvsimError(
                f"Twins are maps that the next layer can do without: layer {self.name!r} was "
                "measured before normalization and activation. Measure with place='reading'."
            )
        found = []
        for i, j in _pairs_above(self.pooled.abs(), threshold):
            kept, dropped = (i, j) if self.rms[i] >= self.rms[j] else (j, i)
            cosine = float(self.pooled[i, j])
            factor = cosine * float(self.rms[dropped] / self.rms[kept])
            found.append(Twins(kept, dropped, factor, 1 - cosine**2))
        return sorted(found, key=lambda pair: pair.lost)


def _pairs_above(similarity_MM: Tensor, threshold: float) -> list[list[int]]:
    if not 0 <= threshold <= 1:
        raise ConvsimError(f"threshold is an absolute cosine, in [0, 1]; got {threshold!r}.")
    above_MM = torch.ones_like(similarity_MM).triu(1).bool() & (similarity_MM >= threshold)
    pairs: list[list[int]] = above_MM.nonzero().tolist()
    return pairs
