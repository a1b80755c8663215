"""Images that stay in their files until they are asked for.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convsim.errors import DataError
from convsim.lab.datasets.decoding import decode_image, reason_of
from convsim.lab.datasets.image_sources import ImageSource
from convsim.lab.datasets.skipping import Skipped


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Some images of a source, in order: like a tensor (N, C, H, W) that has not been read yet.

    Attributes:
        source: Where they lie.
        numbers: int64 (N,), which of them.
        size: (H, W) of what `pixels` makes of each; (0, 0) if they are only wanted as they are.
        channels: C, 1 or 3.
        skipped: What was left out, or whether anything may be.
    """

    source: ImageSource
    numbers: Tensor
    size: tuple[int, int]
    channels: int
    skipped: Skipped

    dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: Tensor | slice) -> ImageFiles:
        """Choose images, as indexing a tensor with a tensor or a slice does."""
        return replace(self, numbers=self.numbers[which])

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), self.channels, *self.size))

    def split(self, count: int) -> list[ImageFiles]:
        """Cut into runs of this many images."""
        return [self[slice(start, start + count)] for start in range(0, len(self), count)]

    def image(self, place: int) -> Image.Image:
        """Decode one image: mode "L" or "RGB", of its own size.

        Raises:
            DataError: If it cannot be read or decoded; names it.
        """
        number = int(self.numbers[place])
        return decoded(self.source.read(number), self.source, number)

    def name(self, place: int) -> str:
        """Return what an image is called."""
        return self.source.names[int(self.numbers[place])]

    def pixels(self, place: int) -> Tensor:
        """Decode one image as uint8 (C, H, W), scaled and cropped about its centre."""
        return to_tensor(fitted(self.image(place), self.size), self.channels)

    @cached_property
    def digest(self) -> bytes:
        """A hash of the files' names and sizes, and of which of them these are."""
        return hashlib.sha256(
            self.source.digest
            + self.numbers.numpy().astype("<i8").tobytes()
            + f"{self.size} {self.channels}".encode()
        ).digest()


def decoded(content: bytes, source: ImageSource, number: int) -> Image.Image:
    """Decode an image of a source.

    Raises:
        DataError: If that fails; names the file.
    """
    try:
        return decode_image(content)
    # PIL's decoders raise many kinds of errors on bytes that are not an image.
    except Exception as error:
        raise DataError(
            f"Every image must be a readable file of moderate size with 8 or 16 bits per channel: "
            f"{source.names[number]!r} in {source.where} is not ({reason_of(error)}). Replace it, "
            "take it out, or leave such files out with --skip-bad."
        ) from error


def sampled_pixels(images: ImageFiles, most: int) -> Tensor:
    """Decode some images, spread evenly over all: uint8 (N, C, H, W).

    Raises:
        DataError: If one cannot be decoded and none may be left out, or none can be.
    """
    count = min(most, len(images))
    pixels = []
    for place in torch.linspace(0, len(images) - 1, count).long().tolist():
        try:
            pixels.append(images.pixels(place))
        except DataError as error:
            images.skipped.skip(images.name(place), error)
    if not pixels:
        raise DataError(f"No image of {images.source.where} can be read. Give other files.")
    return torch.stack(pixels)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the largest central part with the proportions of `size`, (rows, columns).

    Bilinear and antialiased. An image of that size is left as it is.
    """
    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Make uint8 (C, H, W) of an image: grey spreads over three channels, colour becomes grey."""
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(0) if channels == 1 else tensor.permute(2, 0, 1).contiguous()
