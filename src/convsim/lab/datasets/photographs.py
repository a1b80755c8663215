"""Photographs that come with scikit-image and scikit-learn, cut up: whose patch is it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from convsim.errors import require
from convsim.lab.datasets.image_data import ImageData

SIDE = 16
"""Pixels of a patch, in height and width."""
TRAIN, TEST = 200, 150
"""Patches of each photograph; the smallest photograph has 432."""

SKIMAGE = (
    "astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket", "stereo_motorcycle",
)  # fmt: skip
"""Functions of `skimage.data` whose pictures come with the package, without a download."""


def load_photographs() -> ImageData:
    """Cut 16 photographs into grey patches of 16×16; a patch's class is its photograph.

    No two patches overlap. Which are for training and which for testing is drawn once and for all.

    Returns:
        uint8 images of shape (N, 1, 16, 16): 3,200 to train on and 2,400 to test.

    Raises:
        MissingExtraError: If scikit-image or scikit-learn is not installed.
    """
    generator = torch.Generator().manual_seed(0)
    names, train, test = [], [], []
    for name, image_HWC in _photographs():
        patches = _patches(_grey(image_HWC))
        drawn = patches[torch.randperm(len(patches), generator=generator)[: TRAIN + TEST]]
        names.append(name)
        train.append(drawn[:TRAIN])
        test.append(drawn[TRAIN:])
    classes = torch.arange(len(names))
    return ImageData(
        "photographs",
        torch.cat(train), classes.repeat_interleave(TRAIN),
        torch.cat(test), classes.repeat_interleave(TEST),
        tuple(names),
    )  # fmt: skip


def _photographs() -> Iterator[tuple[str, Tensor]]:
    """Yield each one's name and its pixels, uint8 (H, W) or (H, W, 3)."""
    data = require("skimage.data", "lab")
    for name in SKIMAGE:
        read: Callable[[], object] = getattr(data, name)
        found = read()
        image = found[0] if isinstance(found, tuple) else found  # the left eye's of a pair
        yield name, torch.tensor(image)
    samples = require("sklearn.datasets", "lab").load_sample_images()
    for path, image in zip(samples.filenames, samples.images, strict=True):
        yield path.rpartition("/")[2].rpartition("\\")[2].removesuffix(".jpg"), torch.tensor(image)


def _grey(image: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601, uint8 (H, W)."""
    if image.dim() == 2:
        return image
    luma = image[..., :3].double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return luma.round().to(torch.uint8)


def _patches(image_HW: Tensor) -> Tensor:
    """Cut an image into all its patches side by side, (N, 1, SIDE, SIDE)."""
    rows, columns = (size // SIDE for size in image_HW.shape)
    whole = image_HW[: rows * SIDE, : columns * SIDE]
    patches: Tensor = whole.unflatten(0, (rows, SIDE)).unflatten(2, (columns, SIDE)).transpose(1, 2)
    return patches.reshape(-1, 1, SIDE, SIDE)
