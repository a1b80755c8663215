"""What every data set becomes: named images, in memory or in files, with a fingerprint.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import DataError
from convsim.lab.datasets.image_files import ImageFiles, sampled_pixels
from convsim.lab.datasets.layout import UNLABELLED

Images = Tensor | ImageFiles

MOST_SAMPLED = 1000


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images, split into a training and a test part.

    Attributes:
        name: Where the images come from, and what was done to them since.
        train_images: uint8 (N, C, H, W), or images that stay in their files.
        train_labels: int64 (N,), indices into ``classes``.
        test_images: As the training part, with its C, H and W.
        test_labels: int64 (N,).
        classes: One name per label; one empty name for images without classes.
        fingerprint: SHA-256, in hexadecimal, of all images, labels and classes; for images that
            stay in their files, the files' names and sizes count instead. The name does not.
            Computed if left out.
        notes: Sentences on what was done to them, for their user to know.

    Raises:
        DataError: If a tensor has the wrong dtype or shape, a part is empty, images and labels
            differ in number, or a label names no class.

    Example:
        >>> from convsim.lab.datasets import load_dataset
        >>> data = load_dataset("digits")
        >>> small = data.subset(train=100, seed=1)
        >>> small.train_labels.bincount().tolist()
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
        >>> small.fingerprint == data.subset(train=100, seed=1).fingerprint != data.fingerprint
        True
    """

    name: str
    train_images: Images = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Images = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    fingerprint: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_part(
            self.train_images, self.train_labels, self.classes, f"train part of {self.name!r}"
        )
        _check_part(self.test_images, self.test_labels, self.classes, f"test part of {self.name!r}")
        train_CHW, test_CHW = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        if train_CHW != test_CHW:
            raise DataError(
                f"Training and test images must have one shape (C, H, W): {self.name!r} has "
                f"{train_CHW} and {test_CHW}. Convert one part."
            )
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    @property
    def labelled(self) -> bool:
        """Whether there are classes."""
        return self.classes != UNLABELLED

    @property
    def one_part(self) -> bool:
        """Whether both parts are the same images."""
        train, test = self.train_images, self.test_images
        if isinstance(train, ImageFiles) and isinstance(test, ImageFiles):
            return train.source is test.source and torch.equal(train.numbers, test.numbers)
        return isinstance(train, Tensor) and isinstance(test, Tensor) and torch.equal(train, test)

    def require_classes(self) -> ImageData:
        """Return the data set, if a classifier can be trained on it.

        Raises:
            DataError: If it has no classes.
        """
        if not self.labelled:
            raise DataError(
                f"Training needs classes: {self.name!r} has none. Sort the images into folders, "
                "{class}/{image} or {train,test}/{class}/{image}."
            )
        return self

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> ImageData:
        """Draw a stratified random subset; images keep their order.

        Every class keeps its share, and at least one image. With the same seed, a smaller subset of
        balanced classes is part of a larger one.

        Args:
            train: Number of training images to keep; None keeps all.
            test: Number of test images to keep; None keeps all.
            seed: Seed of the draw.

        Returns:
            A new data set with its own fingerprint, and a name that says what was drawn.

        Raises:
            DataError: If asked for more images than there are or for fewer than one per class.
        """
        changes: dict[str, Any] = {}
        drawn = ""
        for part, count in (("train", train), ("test", test)):
            if count is None:
                continue
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            keep = stratified(labels, count, seed=seed, where=f"the {part} part of {self.name!r}")
            changes |= {f"{part}_images": images[keep], f"{part}_labels": labels[keep]}
            drawn += f"-{part}{count}"
        if not changes:
            return self
        return self._derived(f"{drawn}-seed{seed}", **changes)

    def _derived(self, suffix: str, **changes: Any) -> ImageData:
        """Change some fields; the name says how, and the fingerprint is computed anew."""
        return replace(self, name=self.name + suffix, fingerprint="", **changes)

    def to_measure(self, images: int) -> ImageData:
        """Draw the test images that feature maps are compared on, class by class, with seed 0.

        Every class keeps its share, as in `subset`; if there are fewer images than classes, each
        image is of another class. The classes take turns in the result, so that its first images
        show many.

        Args:
            images: How many; all if there are fewer.

        Returns:
            A data set with another test part; its name says what was drawn.
        """
        labels = self.test_labels
        count = min(images, len(labels))
        present = labels.unique()
        if count < len(present):
            generator = torch.Generator().manual_seed(0)
            chosen = present[torch.randperm(len(present), generator=generator)[:count]]
            drawn = torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])
        else:
            drawn = stratified(labels, count, seed=0, where=f"the test part of {self.name!r}")
        drawn = drawn[_taking_turns(labels[drawn])]
        return self._derived(
            f"-test{count}-seed0", test_images=self.test_images[drawn], test_labels=labels[drawn]
        )

    def resized(self, size: int) -> ImageData:
        """Scale images in memory to a square of `size`, from the largest square at the centre.

        Bilinear and antialiased. Images that stay in their files have their size already.
        """
        train, test = self.train_images, self.test_images
        if isinstance(train, ImageFiles) or isinstance(test, ImageFiles):
            return self
        if train.shape[2:] == (size, size):
            return self
        train, test = centre_squares(train, size), centre_squares(test, size)
        return self._derived(f"-{size}px", train_images=train, test_images=test)

    def hold_out(self, fraction: float, seed: int = 0) -> ImageData:
        """Replace the test part by a stratified validation share of the training part.

        Choices made on the result (learning rate, strength of a penalty) cannot use the test
        images: the result does not hold them.

        Args:
            fraction: Share of the training images that becomes the validation part, in (0, 1).
            seed: Seed of the draw.

        Returns:
            A new data set whose name says "validation".

        Raises:
            DataError: If the fraction lies outside (0, 1), or leaves a class without a training or
                without a validation image.
        """
        if not 0 < fraction < 1:
            raise DataError(
                f"The validation share must lie between 0 and 1: got {fraction} for {self.name!r}. "
                f"Pass for example 0.1."
            )
        labels = self.train_labels
        count, present = round(fraction * len(labels)), len(labels.unique())
        if count < present:
            raise DataError(
                f"The validation share must hold an image of each class: {fraction:.0%} of the "
                f"{len(labels)} training images of {self.name!r} are {count}, for {present} "
                f"classes. Take {math.ceil(present / fraction)} training images or more."
            )
        held = stratified(labels, count, seed=seed, where=f"the train part of {self.name!r}")
        keep = torch.ones(len(labels), dtype=torch.bool)
        keep[held] = False
        used_up = set(labels.tolist()) - set(labels[keep].tolist())
        if used_up:
            raise DataError(
                f"Every class must keep a training image: holding out {fraction} of {self.name!r} "
                f"leaves none of class {self.classes[min(used_up)]!r}. Hold out a smaller share."
            )
        return self._derived(
            f"-validation{fraction:g}-seed{seed}",
            train_images=self.train_images[keep], train_labels=labels[keep],
            test_images=self.train_images[held], test_labels=labels[held],
        )  # fmt: skip


def stratified(labels: Tensor, count: int, *, seed: int, where: str) -> Tensor:
    """Draw indices at random such that every class keeps its share, and at least one index.

    Args:
        labels: int64 (N,).
        count: Number of indices to draw.
        seed: Seed of the draw.
        where: What the labels belong to, for the error message.

    Returns:
        int64 (count,), ascending.

    Raises:
        DataError: If ``count`` exceeds N or is below the number of classes present.
    """
    sizes = torch.bincount(labels)
    total, present = len(labels), int((sizes > 0).sum())
    if not present <= count <= total:
        raise DataError(
            f"A stratified draw takes at least one image per class and no more than there are: "
            f"got {count} for {where}, which has {total} images of {present} classes. "
            f"Ask for {present} to {total}."
        )
    # One index per class first; the rest by largest remainder, in integers.
    spare = (sizes - 1).clamp(min=0)
    share = spare * (count - present)
    quota = share // max(total - present, 1)
    rest = count - present - int(quota.sum())
    by_remainder = (share % max(total - present, 1)).argsort(descending=True, stable=True)
    quota[by_remainder[:rest]] += 1
    quota += sizes > 0

    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label, size in enumerate(sizes.tolist()):
        members = (labels == label).nonzero().flatten()
        drawn.append(members[torch.randperm(size, generator=generator)[: int(quota[label])]])
    return torch.cat(drawn).sort().values


def _taking_turns(labels: Tensor) -> Tensor:
    """Return the indices of labels (N,) in rounds: the first of every class, then the second."""
    grouped = labels.argsort(stable=True)
    sizes = torch.bincount(labels)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    turn = torch.arange(len(labels)) - starts  # an image's place among those of its class
    return grouped[turn.argsort(stable=True)]


def _check_part(images: Images, labels: Tensor, classes: tuple[str, ...], where: str) -> None:
    if isinstance(images, ImageFiles):
        whole = len(images) > 0
    else:
        whole = images.dtype == torch.uint8 and images.ndim == 4 and images.numel() > 0
    if not whole:
        raise DataError(
            f"Images must be uint8 of shape (N, C, H, W), none of them 0: the {where} has "
            f"{images.dtype} of shape {tuple(images.shape)}. Convert it first."
        )
    if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
        raise DataError(
            f"Labels must be int64, one per image: the {where} has {labels.dtype} of shape "
            f"{tuple(labels.shape)} for {len(images)} images. Convert or complete them."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"Labels must be indices into the {len(classes)} classes: the {where} has labels from "
            f"{low} to {high}. Name every class, or correct the labels."
        )


def centre_squares(images: Tensor, size: int) -> Tensor:
    """Scale images (N, C, H, W) to (N, C, size, size), from the largest square at the centre."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    return nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)


def _fingerprint(data: ImageData) -> str:
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for part in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        if isinstance(part, ImageFiles):
            digest.update(part.digest)
            continue
        values = part.cpu().contiguous().numpy()
        digest.update(f"{values.dtype.name}{values.shape}".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def pixel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation, (1, C, 1, 1), of each channel of (N, C, H, W).

    Of images that stay in their files, at most `MOST_SAMPLED` are read, spread evenly.
    """
    if isinstance(images, ImageFiles):
        images = sampled_pixels(images, MOST_SAMPLED)
    pixels = images.float().transpose(0, 1).flatten(1)
    shape = (1, -1, 1, 1)
    return pixels.mean(1).view(shape), pixels.std(1).clamp(min=1e-3).view(shape)
