"""CIFAR-10 (JPEG copy) as arrays, on a machine that may have no decoder and no network.

    python benchmarks/gpu/photographs.py prepare ARCHIVE FOLDER   # here: what travels
    python benchmarks/gpu/photographs.py unpack FOLDER            # there: to arrays

`prepare` copies the archive and puts a part of it beside it, decoded and packed without loss.
`unpack` decodes the archive with Pillow, torchvision or OpenCV, whichever there is, or takes that
part if there is none.
"""

from __future__ import annotations

import io
import lzma
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARCHIVE = "cifar10-jpeg.tar.xz"
PART = "cifar10-part.npz.xz"
ARRAYS = "cifar10.npz"
FAILED = "unpacking.failed"
_PER_CLASS = {"train": 1000, "test": 200}  # of the part
_HELD_OUT = 5000
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Photographs:
    """Images (N, 3, H, W) as bytes, and their classes; `source` says where they come from."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def load(folder: Path, *, patience: float = 0.0) -> Photographs:
    """Read the unpacked arrays, and hold out images for validation, always the same.

    Args:
        folder: Where they are.
        patience: How many seconds to wait for another process to unpack them.

    Raises:
        FileNotFoundError: If they are not there by then.
    """
    path, failed, started = folder / ARRAYS, folder / FAILED, time.monotonic()
    while not (path.exists() or failed.exists()) and time.monotonic() - started < patience:
        time.sleep(0.2)
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in _NAMES}
        source = str(file["source"])
    order = torch.randperm(len(arrays["train_labels"]), generator=torch.Generator().manual_seed(0))
    held_out = min(_HELD_OUT, len(order) // 10)
    own, held = order[held_out:], order[:held_out]
    images, labels = arrays["train_images"], arrays["train_labels"]
    return Photographs(
        images[own], labels[own], images[held], labels[held],
        arrays["test_images"], arrays["test_labels"], source,
    )  # fmt: skip


_NAMES = tuple(f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels"))


def unpack(folder: Path) -> str:
    """Turn what has travelled into arrays; return where they come from."""
    (folder / FAILED).unlink(missing_ok=True)
    archive, part = folder / ARCHIVE, folder / PART
    arrays: Arrays | None = None
    source = "CIFAR-10 (JPEG copy)"
    if archive.exists():
        name, decode = decoder()
        if decode is not None:
            arrays = read_archive(archive, decode)
            source += f", decoded with {name}"
    if arrays is None and part.exists():
        arrays = read_part(part)
        source += f", a part of {len(arrays['train_labels']):,} training images"
    if arrays is None:
        raise FileNotFoundError(
            f"{folder} has neither {ARCHIVE} and a decoder for it nor {PART}: run `prepare`."
        )
    write(folder, arrays, source)
    return source


def write(folder: Path, arrays: Arrays, source: str) -> None:
    """Write the arrays at once, so that who waits for them reads them whole."""
    scratch = folder / "unpacking.npz"
    np.savez(scratch, source=np.array(source), **arrays)
    scratch.replace(folder / ARRAYS)


def decoder() -> tuple[str, Callable[[bytes], Any] | None]:
    """Find what decodes a JPEG into (H, W, 3) bytes."""
    for name, find in (("Pillow", _pillow), ("torchvision", _torchvision), ("OpenCV", _opencv)):
        try:
            return name, find()
        except (ImportError, OSError, RuntimeError, AttributeError):
            continue
    return "nothing", None


def _pillow() -> Callable[[bytes], Any]:
    from PIL import Image  # noqa: PLC0415 - it may be missing

    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _torchvision() -> Callable[[bytes], Any]:
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415 - it may be missing

    def decode(data: bytes) -> Any:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def _opencv() -> Callable[[bytes], Any]:
    import cv2  # noqa: PLC0415 - it may be missing

    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def read_archive(
    archive: Path, decode: Callable[[bytes], Any], per_class: dict[str, int] | None = None
) -> Arrays:
    """Decode {split}/{class}/NNNN.jpg, classes by name; all, or the first of each class."""
    images: dict[str, list[Any]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for split, label, data in _files(archive):
        if per_class is None or labels[split].count(label) < per_class[split]:
            images[split].append(decode(data))
            labels[split].append(label)
    classes = sorted(set(labels["train"]))
    return {
        name: value
        for split in images
        for name, value in (
            (f"{split}_images", np.stack(images[split]).transpose(0, 3, 1, 2).copy()),
            (f"{split}_labels", np.array([classes.index(own) for own in labels[split]])),
        )
    }


def _files(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith(".jpg"):
                split, label = member.name.split("/")[-3:-1]
                yield split, label, file.read()


def prepare(archive: Path, folder: Path) -> None:
    """Put the archive and a decoded part of it into a folder that travels."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(archive, folder / ARCHIVE)
    name, decode = decoder()
    if decode is None:
        raise RuntimeError("nothing here decodes JPEG: install Pillow")
    write_part(folder / PART, read_archive(archive, decode, _PER_CLASS))
    print(f"decoded with {name}; {sum(p.stat().st_size for p in folder.iterdir()) / 1e6:.1f} MB")


def write_part(path: Path, arrays: Arrays) -> None:
    """Pack arrays without loss: each pixel less the one to its left, channel by channel."""
    packed = {
        name: np.diff(value, axis=-1, prepend=np.uint8(0)) if name.endswith("images") else value
        for name, value in arrays.items()
    }
    with lzma.open(path, "wb", preset=6) as file:
        np.savez(file, **packed)


def read_part(path: Path) -> Arrays:
    """Unpack what `write_part` has packed."""
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        return {
            name: np.cumsum(file[name], axis=-1, dtype=np.uint8)
            if name.endswith("images")
            else file[name]
            for name in _NAMES
        }


def draw(folder: Path, *, train: int, test: int, size: int = 32) -> None:
    """Draw images of ten classes that can be told apart, for a rehearsal."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (10, 3, size, size))
    arrays: Arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 10
        noise = generator.integers(-64, 64, (count, 3, size, size))
        arrays[f"{split}_images"] = (patterns[labels] + noise).clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, arrays, "drawn, for a rehearsal")


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        target = Path(sys.argv[2])
        try:
            print(unpack(target), flush=True)
        except Exception as error:
            (target / FAILED).write_text(str(error))  # nobody has to wait any longer
            raise
