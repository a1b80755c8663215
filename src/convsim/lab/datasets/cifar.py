"""CIFAR-10 and CIFAR-100 from their official archives, whose batches are pickles.

Reference: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
"""

from __future__ import annotations

import io
import operator
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convsim.errors import DataError
from convsim.lab.datasets.archive import read_tar
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.terminal import progress_bar

# The largest batch, the training part of CIFAR-100, has 155 MB.
MAX_BATCH_BYTES = 256 * 2**20
MAX_NAME_BYTES = 2**16


@dataclass(frozen=True)
class CifarLayout:
    """Where an archive keeps its images (files of batches), labels and class names (keys)."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: bytes
    classes: bytes


CIFAR10 = CifarLayout(
    train=tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
    test=("cifar-10-batches-py/test_batch",),
    meta="cifar-10-batches-py/batches.meta",
    labels=b"labels",
    classes=b"label_names",
)
CIFAR100 = CifarLayout(
    train=("cifar-100-python/train",),
    test=("cifar-100-python/test",),
    meta="cifar-100-python/meta",
    labels=b"fine_labels",
    classes=b"fine_label_names",
)


def decode_cifar(
    paths: Sequence[Path], *, name: str, layout: CifarLayout, progress: bool
) -> ImageData:
    """Read an archive of CIFAR batches; no code in them is run.

    Args:
        paths: The one archive.
        name: Name of the result.
        layout: Where the archive keeps what.
        progress: Whether to show a bar.

    Returns:
        uint8 images of shape (N, 3, 32, 32), in the order of the batches.

    Raises:
        DataError: If the archive is corrupt or lacks a batch, or a batch refers to anything but
            arrays of numpy or holds other shapes.
    """
    (path,) = paths
    wanted = {*layout.train, *layout.test, layout.meta}
    batches: dict[str, dict[bytes, Any]] = {}
    with progress_bar(progress) as bar:
        for entry in read_tar(path, bar, max_member_bytes=MAX_BATCH_BYTES):
            if str(entry.name) in wanted:
                batches[str(entry.name)] = _load(entry.read(), f"{entry.name} in {path}")
    missing = sorted(wanted - batches.keys())
    if missing:
        raise DataError(
            f"A {name} archive must hold {len(wanted)} batches: {path} lacks {', '.join(missing)}. "
            f"Download it again."
        )
    try:
        return ImageData(
            name,
            *_join([batches[file] for file in layout.train], layout.labels),
            *_join([batches[file] for file in layout.test], layout.labels),
            classes=_names(batches[layout.meta][layout.classes]),
        )
    except DataError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"A {name} batch must hold b'data' in rows of 3072 bytes and {layout.labels!r}, and "
            f"the file {layout.meta} must hold {layout.classes!r}: one in {path} does not "
            f"({type(error).__name__}: {error}). Download it again."
        ) from error


def _join(batches: list[dict[bytes, Any]], labels: bytes) -> tuple[Tensor, Tensor]:
    images = np.concatenate([batch[b"data"].values for batch in batches]).reshape(-1, 3, 32, 32)
    numbers = [operator.index(y) for batch in batches for y in batch[labels]]
    return torch.from_numpy(images), torch.from_numpy(np.array(numbers, dtype=np.int64))


def _names(labels: Any) -> tuple[str, ...]:
    if sum(map(len, labels)) > MAX_NAME_BYTES:  # a pickle can name one long name many times
        raise ValueError(f"class names of more than {MAX_NAME_BYTES} bytes")
    return tuple(label.decode() for label in labels)


def _load(content: bytes, where: str) -> dict[bytes, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{error} It is in {where}: download the archive again.") from error
    # Every opcode raises its own kind of error on wrong operands.
    except Exception as error:
        raise DataError(
            f"A batch must be a complete pickle: {where} is corrupt or truncated "
            f"({type(error).__name__}: {error}). Download the archive again."
        ) from error
    if not isinstance(batch, dict):
        raise DataError(
            f"A batch must be a pickled dictionary: {where} is a {type(batch).__name__}. "
            f"Download the archive again."
        )
    return batch


class _Dtype:
    """Stands in for ``numpy.dtype`` in a batch."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands in for ``numpy.ndarray``, which would trust the dtype in a pickle."""

    values: npt.NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", b"u1"):
            code = getattr(dtype, "code", dtype)
            raise DataError(f"Arrays in a batch must be of type 'u1': this one is of {code!r}.")
        order: Literal["F", "C"] = "F" if fortran else "C"
        self.values = np.frombuffer(content, dtype=np.uint8).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``: a few calls of it in a row can fill any memory."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"bytes encoded as {encoding!r:.40}")
    return text.encode("latin1")


# All that a pickled array refers to, under the names of numpy 1 and 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle._Unpickler):
    """An unpickler that can build arrays of bytes and plain values, and nothing else.

    In Python: the one in C reserves memory for whatever sizes and indices a pickle claims.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise DataError(
                f"A batch may refer to arrays of numpy only: this one refers to "
                f"'{module_name}.{global_name}', which was not run."
            ) from None
