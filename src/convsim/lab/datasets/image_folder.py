"""Make a data set of listed images: decoded into memory, or left in their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from convsim.errors import DataError
from convsim.lab.datasets.decoding import GREY, image_header
from convsim.lab.datasets.image_data import ImageData, stratified
from convsim.lab.datasets.image_files import ImageFiles, decoded, fitted
from convsim.lab.datasets.image_sources import ImageSource
from convsim.lab.datasets.layout import Layout, Part
from convsim.lab.datasets.listing import Listing
from convsim.lab.datasets.memory import memory
from convsim.lab.datasets.skipping import Skipped

TEST_SHARE = 0.2
_PEEKED = 32


class ManySizesError(DataError):
    """Images differ in size, and no size was given to scale them to."""


@dataclass(frozen=True)
class Shape:
    """What some images of a data set have in common: (rows, columns), and whether all are grey."""

    size: tuple[int, int]
    grey: bool


def with_test_part(layout: Layout, where: Path, *, whole: bool) -> tuple[Layout, tuple[str, ...]]:
    """Give a layout that has one part a test part, and say what was done.

    Args:
        layout: The layout.
        where: Where it comes from, for error messages.
        whole: Whether both parts are all the images; otherwise a fifth of each class, drawn with
            seed 0, is the test part.

    Raises:
        DataError: If a class has fewer than two images.
    """
    if layout.test is not None:
        return layout, ()
    if whole:
        return Layout(layout.train, layout.train, layout.classes), ()
    numbers, labels = layout.train.numbers, layout.train.labels
    few = (labels.bincount(minlength=len(layout.classes)) < 2).nonzero()
    if len(few):
        raise DataError(
            f"A class needs two images to be split into parts: {layout.classes[int(few[0])]!r} of "
            f"{where} has one. Add images, or take the class out."
        )
    count = max(round(TEST_SHARE * len(labels)), len(layout.classes))
    drawn = stratified(labels, count, seed=0, where=f"the images of {where}")
    stays = torch.ones(len(labels), dtype=torch.bool)
    stays[drawn] = False
    train, test = (Part(numbers[chosen], labels[chosen]) for chosen in (stays, drawn))
    note = (
        f"{where} has no train and test folders: {len(drawn):,} of its {len(labels):,} images, "
        "drawn by class with seed 0, are the test part."
    )
    return Layout(train, test, layout.classes), (note,)


def common_shape(listing: Listing, *, resized: bool) -> Shape:
    """Look at the headers of some images, spread evenly over all.

    Args:
        listing: The images.
        resized: Whether they may differ in size; if they do, the size is (0, 0).

    Raises:
        DataError: If two differ in size and they may not, or none can be read.
    """
    source, numbers = listing.source, listing.layout.train.numbers
    if listing.layout.test is not None:
        numbers = torch.cat([numbers, listing.layout.test.numbers])
    sizes: dict[tuple[int, int], str] = {}
    grey = True
    for place in torch.linspace(0, len(numbers) - 1, min(_PEEKED, len(numbers))).long().tolist():
        number = int(numbers[place])
        try:
            width, height, mode = image_header(source.read(number))
        except Exception:  # decoding tells why
            continue
        sizes.setdefault((height, width), source.names[number])
        grey &= mode in GREY
    if len(sizes) > 1 and not resized:
        raise _two_sizes(source, *[*sizes.items()][1::-1])
    return Shape(next(iter(sizes)) if len(sizes) == 1 else (0, 0), grey and bool(sizes))


def fits(count: int, channels: int, size: tuple[int, int]) -> bool:
    """Tell whether decoded images fill at most a quarter of this machine's memory."""
    return count * channels * size[0] * size[1] <= memory() // 4


def leave_in_files(
    listing: Listing, name: str, size: tuple[int, int], channels: int, skipped: Skipped
) -> ImageData:
    """Make a data set whose images are read only when they are asked for."""
    layout = listing.layout
    assert layout.test is not None
    train, test = (
        ImageFiles(listing.source, part.numbers, size, channels, skipped)
        for part in (layout.train, layout.test)
    )
    return ImageData(name, train, layout.train.labels, test, layout.test.labels, layout.classes)


def decode_all(
    listing: Listing, name: str, size: tuple[int, int] | None, bar: Progress, skipped: Skipped
) -> ImageData:
    """Decode every image into memory.

    They stay grey only if every one is grey; otherwise all become RGB.

    Args:
        listing: The images.
        name: Name of the result.
        size: What they are scaled to and cropped about their centre; None if all have one size.
        bar: Shows the share that is done.
        skipped: What is left out.

    Raises:
        DataError: If an image cannot be decoded or, without a size, has one of its own.
    """
    layout, source = listing.layout, listing.source
    assert layout.test is not None
    pixels: dict[int, np.ndarray] = {}
    first: tuple[tuple[int, int], str] | None = None
    numbers = [*layout.train.numbers.tolist(), *layout.test.numbers.tolist()]
    for number in bar.track(numbers, description=f"Decoding {listing.source.where.name}"):
        if number in pixels:
            continue
        try:
            image = decoded(source.read(number), source, number)
        except DataError as error:
            skipped.skip(source.names[number], error)
            continue
        if size is not None:
            image = fitted(image, size)
        shape = (image.height, image.width)
        first = first or (shape, source.names[number])
        if shape != first[0]:
            raise _two_sizes(source, (shape, source.names[number]), first)
        pixels[number] = np.asarray(image)
    grey = all(image.ndim == 2 for image in pixels.values())
    train, test = (_stack(pixels, part, grey, source) for part in (layout.train, layout.test))
    return ImageData(name, *train, *test, layout.classes)


def _stack(
    pixels: dict[int, np.ndarray], part: Part, grey: bool, source: ImageSource
) -> tuple[Tensor, Tensor]:
    pairs = zip(part.numbers.tolist(), part.labels.tolist(), strict=True)
    there = [(number, label) for number, label in pairs if number in pixels]
    if not there:
        raise DataError(f"No image of {source.where} can be read. Give other files.")
    height, width = pixels[there[0][0]].shape[:2]
    images = np.empty((len(there), 1 if grey else 3, height, width), dtype=np.uint8)
    for image, (number, _) in zip(images, there, strict=True):
        # Grey among colours spreads over the three channels.
        one = pixels[number]
        image[:] = one if one.ndim == 2 else one.transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([label for _, label in there])


def _two_sizes(source: ImageSource, *found: tuple[tuple[int, int], str]) -> ManySizesError:
    (one, name), (other, first) = found
    return ManySizesError(
        f"All images must have one size: {name!r} in {source.where} has {_size(one)}, {first!r} "
        f"has {_size(other)} (width×height). Give the one to scale and crop them to, with --size."
    )


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}×{shape[0]}"
