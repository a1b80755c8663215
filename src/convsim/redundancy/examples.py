"""The first images that are measured: pictures of them and of the maps, and the certificate there.

Shape suffixes: E example images, M maps, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.redundancy.pictures import image_pictures, kernel_pictures, map_pictures
from convsim.report.layer_redundancy import MapPair, Pictures
from convsim.similarity.certificate import certified_cosines


class ExampleImages:
    """The first images of one size, up to a number, drawn before a model reads them.

    Attributes:
        batch: How many batches were seen.
        size: How many images the last of them holds.
        taken: How many of these, from its first, are examples.
        drawn: How many examples there are.
    """

    def __init__(self, wanted: int) -> None:
        self.batch = self.size = self.taken = self.drawn = 0
        self._wanted = wanted
        self._shape: torch.Size | None = None
        self._pictures: list[Tensor] = []

    def take(self, count: int, images: Tensor) -> None:
        """Look at the next batch: how many images it holds, and the first of them, of one size."""
        self.batch, self.size, self.taken = self.batch + 1, count, 0
        if self._shape in (None, images.shape[1:]):
            self._shape = images.shape[1:]
            shown = images[: max(0, self._wanted - self.drawn)]
            if len(shown) or not self._pictures:
                self._pictures.append(image_pictures(shown))
            self.taken = len(shown)
            self.drawn += self.taken

    def pictures(self) -> Tensor:
        """Return the images as `RedundancyReport.examples`."""
        return torch.cat(self._pictures)


class LayerExamples:
    """A layer's maps on the example images, as pictures, and the certificate's two sides there.

    Memory: at most 576 bytes for each map and image.
    """

    def __init__(self, bank: KernelBank | None, images: ExampleImages) -> None:
        self._bank, self._images = bank, images
        self._batch = self._read = 0
        self._maps: list[Tensor] = []
        self._certificates: list[Tensor] = []

    def add(self, maps_NMx: Tensor) -> None:
        """Look at what a layer made of a batch, the first time that it runs on it."""
        count = self._images.taken
        if not count or self._batch == self._images.batch:
            return
        self._batch = self._images.batch
        if len(maps_NMx) == self._images.size:  # else none is known to be an image's
            self._maps.append(map_pictures(maps_NMx[:count]))

    def read(self, inputs: Sequence[Any]) -> None:
        """Look at what a layer reads of a batch, the first time that it runs on it."""
        count = self._images.taken
        if not count or self._read == self._images.batch:
            return
        self._read = self._images.batch
        if self._bank is not None and inputs and _reads(self._bank, inputs[0]):
            self._certificates += _certificates(self._bank, inputs[0][:count])

    def pictures(self, pairs: Sequence[MapPair]) -> Pictures | None:
        """Return the maps and kernels of pairs, if the layer has any on every example image."""
        whole = {maps.shape[1:] for maps in self._maps}
        drawn = sum(map(len, self._maps))
        if not pairs or len(whole) != 1 or drawn < self._images.drawn:
            return None
        index = torch.tensor([[pair.first, pair.second] for pair in pairs])
        kernels = torch.empty(len(pairs), 2, 0, 1, 1, dtype=torch.int8)
        if self._bank is not None:
            kernels = kernel_pictures(self._bank, pairs)
        return Pictures(torch.cat(self._maps)[:, index], kernels)

    def certificate(self) -> Tensor:
        """Return the certificate's bound, and the cosine it bounds, mean over pairs and images."""
        if not self._certificates:
            return torch.full((2,), math.nan)
        return torch.cat(self._certificates, 1).flatten(1).nanmean(1)


def _reads(bank: KernelBank, inputs: Any) -> bool:
    """Whether inputs have the channels and axes that filters read."""
    groups, _, channels = bank.filters.shape[:3]
    axes = len(bank.kernel) + 2
    return (
        isinstance(inputs, Tensor) and inputs.dim() == axes and inputs.shape[1] == groups * channels
    )


def _certificates(bank: KernelBank, inputs: Tensor) -> list[Tensor]:
    """Bound and measure image by image: (2, 1, G), mean over the pairs of each group."""
    filters = bank.filters.shape[1]
    upper = torch.ones(filters, filters, dtype=torch.bool, device=inputs.device).triu(1)
    if not upper.any():
        return []
    return [
        torch.stack(certified_cosines(bank, image.unsqueeze(0)))[..., upper].nanmean(-1)
        for image in inputs
    ]
