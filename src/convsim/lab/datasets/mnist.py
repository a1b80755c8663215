"""MNIST and Fashion-MNIST from their idx files.

References: LeCun et al. (1998), Gradient-Based Learning Applied to Document Recognition;
Xiao, Rasul and Vollgraf (2017), Fashion-MNIST.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convsim.errors import DataError
from convsim.lab.datasets.image_data import ImageData

MAX_IDX_BYTES = 2**27  # the largest file of MNIST has 47 MB


def decode_mnist(
    paths: Sequence[Path], *, name: str, classes: tuple[str, ...], progress: bool
) -> ImageData:
    """Read four idx files.

    Args:
        paths: Training images and labels, test images and labels.
        name: Name of the result.
        classes: Names of the labels, which the files do not hold.
        progress: Ignored: four small files need no bar.

    Returns:
        uint8 images of shape (N, 1, H, W).

    Raises:
        DataError: If a file is corrupt.
    """
    del progress
    train_images, train_labels, test_images, test_labels = (
        read_idx(path, ndim=ndim) for path, ndim in zip(paths, (3, 1, 3, 1), strict=True)
    )
    return ImageData(
        name,
        train_images.unsqueeze(1),
        train_labels.long(),
        test_images.unsqueeze(1),
        test_labels.long(),
        classes,
    )


def read_idx(path: Path, *, ndim: int) -> Tensor:
    """Read a compressed idx file of bytes.

    The header is four bytes (0, 0, 8 for bytes, number of dimensions) and one 32-bit big-endian
    size per dimension; it fixes how much is decompressed.

    Args:
        path: The .gz file.
        ndim: Number of dimensions it must have.

    Returns:
        uint8, of the sizes in the header.

    Raises:
        DataError: If the file is no idx file of that many dimensions, claims more than
            ``MAX_IDX_BYTES``, or is longer or shorter than its header says.
    """
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, ndim)):
                raise _corrupt(path, f"with the magic bytes 0 0 8 {ndim}", f"{[*magic]}")
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            size = math.prod(shape)
            if size > MAX_IDX_BYTES:
                raise _corrupt(path, f"of at most {MAX_IDX_BYTES} bytes", f"sizes {shape}")
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _corrupt(path, "in complete gzip", f"{type(error).__name__}: {error}") from error
    if len(content) != size:
        length = f"{len(content)} bytes" if len(content) < size else "more"
        raise _corrupt(path, f"of the {size} bytes its header claims", f"{length} for {shape}")
    return torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape))


def _corrupt(path: Path, rule: str, value: str) -> DataError:
    return DataError(
        f"An idx file must be one {rule}: {path} has {value}. Delete it to download it again."
    )
