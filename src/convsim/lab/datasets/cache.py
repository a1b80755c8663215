"""Keep decoded data sets in one safetensors file each, so that decoding happens once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convsim.errors import ConvsimWarning
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.files import replacing

# Part of every file name: raise it when decoding changes.
FORMAT = 2

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
_warned: set[Path] = set()


def cached(key: str, name: str, root: Path, decode: Callable[[], ImageData]) -> ImageData:
    """Read a decoded data set, or decode it and keep the result.

    Images that stay in their files are not kept. A cached file that does not match its fingerprint
    is made again. If the folder cannot be written, a warning says so once and nothing is kept.

    Args:
        key: Hash of what is decoded.
        name: Name of the result; data sets of one key share a file under any name.
        root: Folder of all that convsim keeps.
        decode: Makes the data set.

    Returns:
        The data set, under ``name``.
    """
    data = find_cached(key, name, root)
    if data is None:
        data = decode()
        if isinstance(data.train_images, Tensor) and isinstance(data.test_images, Tensor):
            _write(_path(key, root), data)
    return data


def find_cached(key: str, name: str, root: Path) -> ImageData | None:
    """Read a decoded data set, if it is there."""
    return _read(_path(key, root), name)


def _path(key: str, root: Path) -> Path:
    return root / "decoded" / f"{key}-{FORMAT}.safetensors"


def _read(path: Path, name: str) -> ImageData | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in _TENSORS}
        classes, notes = (
            tuple(json.loads(metadata.get(key, "[]"))) for key in ("classes", "notes")
        )
        data = ImageData(name, **tensors, classes=classes, notes=notes)
        return data if data.fingerprint == metadata["fingerprint"] else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _write(path: Path, data: ImageData) -> None:
    metadata = {
        "classes": json.dumps(data.classes),
        "fingerprint": data.fingerprint,
        "notes": json.dumps(data.notes),
    }
    tensors = {key: getattr(data, key).contiguous() for key in _TENSORS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")), replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        _warn_once(path.parent, str(error.__cause__ or error))


def _warn_once(folder: Path, reason: str) -> None:
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"The folder of decoded data sets must be writable: {folder} is not ({reason}), so "
            f"every load decodes anew. Set CONVSIM_HOME or root= to another folder.",
            ConvsimWarning,
            stacklevel=2,
        )
