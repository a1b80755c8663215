"""The handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

import torch

from convsim.errors import require
from convsim.lab.datasets.image_data import ImageData, stratified

TEST_IMAGES = 500


def load_digits() -> ImageData:
    """Load 1797 grey images of 8×8, their values 0..16 scaled to 0..255.

    They have no official split: a fixed stratified draw makes 500 of them the test part.

    Returns:
        uint8 images of shape (N, 1, 8, 8).

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    values, target = require("sklearn.datasets", "lab").load_digits(return_X_y=True)
    images = torch.from_numpy(values).reshape(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(target).long()
    test = stratified(labels, TEST_IMAGES, seed=0, where="digits")
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    classes = tuple(str(digit) for digit in range(10))
    return ImageData("digits", images[train], labels[train], images[test], labels[test], classes)
