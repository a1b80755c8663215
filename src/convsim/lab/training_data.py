"""The images that a network is trained on, in the size that it is trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from convsim.errors import DataError
from convsim.lab.datasets import DATASETS, load_dataset
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.datasets.image_files import ImageFiles
from convsim.lab.datasets.image_folder import ManySizesError
from convsim.lab.loading import worker_options
from convsim.lab.preprocessing import own_size


def load_to_train(
    source: str, model: str, *, size: int | None, augment: bool, skip_bad: bool = False
) -> ImageData:
    """Load labelled images to train a network on.

    Photographs that are cropped at random stay in their files, for the crops are of the whole
    photograph; others are scaled once.

    Args:
        source: As in `load_dataset`.
        model: The network's name.
        size: Height and width to scale and crop images to. If None and they differ in size, what
            the library of the network says.
        augment: Whether they shall be cropped and mirrored at random.
        skip_bad: As in `load_dataset`; every file is then decoded once to tell.

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
    return readable(data.require_classes())


def where(source: str) -> str:
    """Name a data set so that it is found from anywhere: a path becomes absolute."""
    return source if source in DATASETS else str(Path(source).expanduser().absolute())


def readable(data: ImageData) -> ImageData:
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
        loader = DataLoader(
            _Decoded(images), batch_size=64, collate_fn=list, **worker_options(images)
        )
        good = torch.tensor([one for batch in loader for one in batch])
        for place in (~good).nonzero().flatten().tolist():
            images.skipped.note(images.name(place))
        noted = [str(images.skipped)] if images.skipped.names else []
        parts |= {f"{part}_images": images[good], f"{part}_labels": labels[good]}
    return replace(data, **parts, notes=(*data.notes, *noted), fingerprint="")


class _Decoded(Dataset[bool]):
    """Whether each image can be read."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> bool:
        try:
            self.images.image(place)
        except DataError:
            return False
        return True
