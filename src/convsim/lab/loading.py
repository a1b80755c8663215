"""Batches of what a network reads, prepared image by image in worker processes or all at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from convsim.errors import ConvsimError, DataError
from convsim.lab.augmentation import resized_crop
from convsim.lab.datasets.image_data import Images
from convsim.lab.datasets.image_files import ImageFiles, to_tensor
from convsim.lab.preprocessing import Preprocessing, Standardised

_AHEAD = 2
"""Batches that each worker prepares ahead of their use."""
_FEW = 64
"""Images that are not worth a worker."""


def prepared(
    images: Images,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int | None = None,
) -> Iterator[Tensor]:
    """Yield images in their order, in batches as a network reads them.

    Args:
        images: uint8 (N, C, H, W), or images in their files.
        preprocessing: What is made of each.
        batch_size: How many at once; fewer where files are left out.
        workers: Processes that read and prepare; by default one a core, at most eight, if images
            lie in files.

    Raises:
        DataError: If a file cannot be read and may not be left out, or no file can be read.
        ConvsimError: If images come out of different sizes.

    Memory: some batches a worker, however many images there are.
    """
    if isinstance(images, Tensor) and isinstance(preprocessing, Standardised):
        for part in images.split(batch_size):
            yield preprocessing.batch(part)
        return
    loader = DataLoader(
        _Prepared(images, preprocessing),
        batch_size=batch_size,
        collate_fn=_sorted_out,
        **worker_options(images, workers),
    )
    some = False
    for batch, failures in loader:
        for failure in failures:
            if not _may_skip(images, failure):
                raise failure.kind(failure.message)
            images.skipped.note(failure.name)  # type: ignore[union-attr]
        if len(batch):
            some = True
            yield _stacked(batch)
    if not some and isinstance(images, ImageFiles):
        raise DataError(f"No image of {images.source.where} can be read. Give other files.")


def _may_skip(images: Images, failure: _Failure) -> bool:
    files = isinstance(images, ImageFiles) and images.skipped.allowed
    return files and issubclass(failure.kind, DataError)


def worker_options(images: Images, workers: int | None = None) -> dict[str, Any]:
    """Return a DataLoader's options for so many processes, or as many as the images are worth.

    Workers start as copies of this process where they can, with whatever it has imported.
    """
    number = _default_workers(images) if workers is None else workers
    fork = "fork" in multiprocessing.get_all_start_methods()
    return {
        "num_workers": number,
        "prefetch_factor": _AHEAD if number else None,
        "multiprocessing_context": "fork" if number and fork else None,
    }


def _default_workers(images: Images) -> int:
    """Choose how many processes read images: none for few, or those in memory."""
    few = not isinstance(images, ImageFiles) or len(images) < _FEW
    return 0 if few or not _shared_memory() else min(8, os.cpu_count() or 1)


def _shared_memory() -> bool:
    """Tell whether workers can hand over batches; in a container with 64 MB for that, they die."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return True  # not Linux
    return found.f_bavail * found.f_frsize > 2**29


@dataclass(frozen=True)
class _Failure:
    """Why an image was not prepared; an exception would lose its message between processes."""

    name: str
    kind: type[ConvsimError]
    message: str


class _Prepared(Dataset[Any]):
    """Images as a network reads them, one by one."""

    def __init__(self, images: Images, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Tensor | _Failure:
        if isinstance(self.images, Tensor):
            return self.preprocessing(_picture(self.images[place]))
        try:
            return self.preprocessing(self.images.image(place))
        except ConvsimError as error:
            return _Failure(self.images.name(place), type(error), str(error))


def _picture(image: Tensor) -> Image.Image:
    """Make a picture of uint8 (1 or 3, H, W)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _sorted_out(items: Sequence[Tensor | _Failure]) -> tuple[list[Tensor] | Tensor, list[_Failure]]:
    tensors = [item for item in items if isinstance(item, Tensor)]
    failures = [item for item in items if isinstance(item, _Failure)]
    alike = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if alike else tensors, failures


def _stacked(batch: list[Tensor] | Tensor) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    sizes = sorted({"×".join(map(str, tensor.shape[1:])) for tensor in batch})
    raise ConvsimError(
        f"Images of a batch must have one size: the preprocessing made {' and '.join(sizes[:2])}. "
        "Give --size, or crop to a fixed size."
    )


class Draw(NamedTuple):
    """Which images make a batch, and what seeds their augmentation."""

    places: list[int]
    seed: int | None = None


class LabelledBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of images as they are stored, uint8 (N, C, H, W), and labels, by a `Draw`.

    A draw with a seed gives images of files cropped and mirrored at random.
    """

    def __init__(self, images: Images, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Read a batch."""
        labels = self.labels[draw.places]
        if isinstance(self.images, Tensor):
            return self.images[draw.places], labels
        files = self.images
        if draw.seed is None:
            return torch.stack([files.pixels(place) for place in draw.places]), labels
        images = [
            to_tensor(
                resized_crop(
                    files.image(place), files.size, seed=draw.seed * 2_654_435_761 + place
                ),
                files.channels,
            )
            for place in draw.places
        ]
        return torch.stack(images), labels


def labelled_batches(
    images: Images, labels: Tensor, draws: Sequence[Draw] | Sampler[Draw]
) -> DataLoader[Any]:
    """Load the batches that are drawn; files are read by workers."""
    return DataLoader(
        LabelledBatches(images, labels), sampler=draws, batch_size=None, **worker_options(images)
    )


def in_order(images: Images, labels: Tensor, batch_size: int = 500) -> DataLoader[Any]:
    """Load images (N, C, H, W) and labels (N,) batch by batch, in their order."""
    batches = torch.arange(len(labels)).split(batch_size)
    return labelled_batches(images, labels, [Draw(batch.tolist()) for batch in batches])
