"""The images that a network is trained on, at their training size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convsim.lab.datasets import DATASETS, load_dataset
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.datasets.image_files import ImageFiles
from convsim.lab.datasets.image_folder import ManySizesError
from convsim.lab.loading import prepared
from convsim.lab.preprocessing import ImageFunction, own_size


def load_to_train(
    source: str, model: str, *, size: int | None, augment: bool, skip_bad: bool = False
) -> ImageData:
    """Load labelled images to train a network on.

    Photographs that are cropped at random stay in their files, because crops come from the whole
    photograph; others are scaled once.

    Args:
        source: As in `load_dataset`.
        model: The network's name.
        size: Height and width to scale and crop images to. If None and they differ in size, the
            size that the network's library names.
        augment: Whether they will be cropped and mirrored at random.
        skip_bad: As in `load_dataset`; every file is then decoded once to find out.

    Raises:
        DataError: As `load_dataset`, and if there are no classes.
    """

    def load(side: int | None) -> ImageData:
        stream = augment and side is not None and source not in DATASETS
        return load_dataset(source, size=side, stream=stream, skip_bad=skip_bad)

    try:
        data = load(size)
    except ManySizesError:
        if size is not None or (own := own_size(model)) is None:
            raise
        data = load(own)
    return without_unreadable(data.require_classes())


def absolute_source(source: str) -> str:
    """Name a data set so that it can be found from anywhere: a path becomes absolute."""
    return source if source in DATASETS else str(Path(source).expanduser().absolute())


def without_unreadable(data: ImageData) -> ImageData:
    """Leave out the files that cannot be read, if they may be, by decoding each once.

    Raises:
        DataError: If that leaves a part empty.
    """
    parts: dict[str, Any] = {}
    noted: list[str] = []
    for part in ("train", "test"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        if not isinstance(images, ImageFiles) or not images.skipped.allowed:
            return data
        for _ in prepared(images, ImageFunction("decoded", _nothing), 64):
            pass
        good = torch.tensor(
            [images.name(i) not in images.skipped.names for i in range(len(images))]
        )
        noted = [f"{images.skipped}."] if images.skipped.names else []
        parts |= {f"{part}_images": images[good], f"{part}_labels": labels[good]}
    return replace(data, **parts, notes=(*data.notes, *noted), fingerprint="")


def _nothing(image: Image.Image) -> Tensor:
    return torch.empty(1, 1, 1)
