"""Decode the ImageFolder layout, {train,test}/{class}/{image}, from a folder or a tar archive."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from rich.progress import Progress
from torch import Tensor

from convsim.errors import DataError
from convsim.lab.datasets.archive import MAX_MEMBER_BYTES, Entry
from convsim.lab.datasets.image_data import ImageData

MAX_PIXELS = 2**24
MAX_SCANS = 100
"""Most passes over a JPEG's pixels: a few bytes ask for each, so that a small file takes hours."""

LAYOUT = "{train,test}/{class}/{image}, inside one top folder or none"
_TEST_NAMES = ("test", "val", "validation")
_FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
# How a mode of PIL is read: as grey or as RGB. The modes left out have more than 8 bits.
_GREY, _COLOUR = {"1", "L", "LA", "La"}, {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}

_Pixels = npt.NDArray[np.uint8]  # (H, W) grey or (H, W, 3) RGB
_Part = dict[str, dict[str, _Pixels]]  # class → file → pixels


class _Place(NamedTuple):
    top: str
    part: str
    inside: tuple[str, ...]


def read_folder(path: Path, bar: Progress) -> Iterator[Entry]:
    """Yield the files and folders of a data set's parts, in the order of their names.

    Args:
        path: The folder. Links in it are followed.
        bar: Shows the share of the files that was read.

    Raises:
        DataError: If a file is too large or cannot be read.
    """
    entries = list(_walk(path, PurePosixPath()))
    for name, item in bar.track(entries, description=f"Decoding {path.name}"):
        yield Entry(name, item.is_dir(), lambda file=Path(item): _read_file(file))  # type: ignore[misc]


def folder_key(path: Path) -> str:
    """Hash where a folder is and the names, sizes and modification times of its files."""
    # The place is part of it: unpacked archives often share names, sizes and rounded times.
    digest = hashlib.sha256(os.fsencode(path.resolve()))
    for name, item in _walk(path, PurePosixPath()):
        try:
            status = item.stat()
        except OSError as error:
            raise _unreadable(Path(item), error) from error
        digest.update(f"\n{str(name)!r} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def decode_image_folder(entries: Iterable[Entry], *, name: str, where: Path) -> ImageData:
    """Decode every image of an ImageFolder layout.

    Classes are sorted by name, images by class and file name. All images must have one size.
    They stay grey only if every one is grey; otherwise all become RGB, without transparency. Each
    is turned as its EXIF tag says; of several frames, the first is taken. Hidden
    files, files that are no images, and folders outside the layout play no part.

    Args:
        entries: The files and folders of the data set, in any order.
        name: Name of the result.
        where: What the entries come from, for error messages.

    Returns:
        uint8 images with C = 1 or 3.

    Raises:
        DataError: If the layout is another one, a class is empty or missing in one part, an image
            cannot be decoded or has a size of its own, or all are more than the memory holds.
    """
    found: dict[tuple[str, str], _Part] = {}
    first: tuple[PurePosixPath, tuple[int, ...]] | None = None
    decoded = 0
    for entry in entries:
        place = _place(entry.name)
        if place is None:
            continue
        if entry.is_folder:
            part = found.setdefault((place.top, place.part), {})
            if len(place.inside) == 1:
                part.setdefault(place.inside[0], {})
            continue
        if not _is_image(entry.name, where):
            continue
        if len(place.inside) != 2:
            raise DataError(
                f"Images must lie at {LAYOUT}: {str(entry.name)!r} in {where} lies elsewhere. "
                f"Move it into a class folder, or take it out."
            )
        pixels = _decode(entry, where)
        decoded += pixels.nbytes
        if decoded > _memory() // 4:
            raise DataError(
                f"Decoded images must fit in a quarter of this machine's memory: {where} goes "
                f"beyond at {str(entry.name)!r}. Make the images smaller, or take fewer."
            )
        first = first or (entry.name, pixels.shape[:2])
        if pixels.shape[:2] != first[1]:
            raise DataError(
                f"All images must have one size: {str(entry.name)!r} in {where} has "
                f"{_size(pixels.shape)}, {str(first[0])!r} has {_size(first[1])} (width×height). "
                f"Resize or crop them all to one size."
            )
        images = found.setdefault((place.top, place.part), {}).setdefault(place.inside[0], {})
        if images.setdefault(place.inside[1], pixels) is not pixels:
            raise DataError(
                f"A file may be there only once: {where} has {str(entry.name)!r} twice. "
                f"Pack it again."
            )
    train, test = _parts(found, where)
    classes = tuple(sorted(train))
    grey = all(p.ndim == 2 for part in (train, test) for c in part.values() for p in c.values())
    return ImageData(name, *_stack(train, classes, grey), *_stack(test, classes, grey), classes)


def _memory() -> int:
    """Return how many bytes of memory the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _walk(folder: Path, name: PurePosixPath) -> Iterator[tuple[PurePosixPath, os.DirEntry[str]]]:
    """Walk folders that can belong to the layout, and only those: no link can lead in a circle."""
    try:
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    for item in items:
        inner = name / item.name
        place = _place(inner)
        if place:
            yield inner, item
        might_be_top = len(inner.parts) == 1 and not item.name.startswith(".")
        if item.is_dir() and (might_be_top or (place and len(place.inside) <= 2)):
            yield from _walk(Path(item), inner)


def _place(name: PurePosixPath) -> _Place | None:
    """Locate a name in the layout; None for what lies outside of it and for hidden files."""
    parts = name.parts
    if any(part.startswith(".") for part in parts):
        return None
    for depth in (0, 1):
        if len(parts) > depth and parts[depth] in ("train", *_TEST_NAMES):
            return _Place("/".join(parts[:depth]), parts[depth], parts[depth + 1 :])
    return None


def _is_image(name: PurePosixPath, where: Path) -> bool:
    suffix = name.suffix.lower()
    if suffix not in _FORMATS and Image.registered_extensions().get(suffix) in Image.OPEN:
        raise DataError(
            f"Images must be {', '.join(_FORMATS)}: {str(name)!r} in {where} is not. Convert it."
        )
    return suffix in _FORMATS


def _read_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # it might never end
        raise _unreadable(path, OSError("a device or a pipe"))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > MAX_MEMBER_BYTES:
        raise DataError(
            f"An image may have at most {MAX_MEMBER_BYTES} bytes: {path} has more. Make it smaller."
        )
    return content


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"Every file and folder of a data set must be readable: {path} is not ({error}). "
        f"Correct its permissions or the link, or take it out."
    )


def _decode(entry: Entry, where: Path) -> _Pixels:
    content = entry.read()
    try:
        with _open(content) as image:
            _check_header(image, content)
            if image.format == "PNG":
                image.verify()  # decoding looks at some of its checksums only
                image = _open(content)  # noqa: PLW2901 - verifying uses it up
            pixels = np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
            return _upright(pixels, image)
    # PIL's decoders let through many kinds of errors on bytes that are no image.
    except Exception as error:
        # Its own text for this one holds the address of an object.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"Every image must be a readable file of moderate size with 8 bits per channel: "
            f"{str(entry.name)!r} in {where} is not ({reason}). Replace it or take it out."
        ) from error


def _upright(pixels: _Pixels, image: Image.Image) -> _Pixels:
    """Turn and mirror pixels (H, W, …) as the image's EXIF tag says, and as viewers show it."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of many kinds; viewers show such an image as it is stored
        return pixels
    if orientation in (5, 6, 7, 8):  # rows and columns change places
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=sorted(set(_FORMATS.values())))


def _check_header(image: Image.Image, content: bytes) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}×{height} pixels, {MAX_PIXELS} allowed")
    if image.mode not in _GREY | _COLOUR:
        raise OSError(f"mode {image.mode!r} has more than 8 bits per channel")
    if image.format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
        raise OSError(f"more than {MAX_SCANS} scans")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


def _parts(found: dict[tuple[str, str], _Part], where: Path) -> tuple[_Part, _Part]:
    """Tell the training from the test part, and check that they hold the same classes."""
    names = [part for _, part in found]
    tests = [part for part in names if part != "train"]
    if len({top for top, _ in found}) > 1 or "train" not in names or len(tests) != 1:
        there = ", ".join("/".join(filter(None, key)) for key in sorted(found)) or "neither"
        raise DataError(
            f"A data set must have the layout {LAYOUT}, with one train folder and one of "
            f"{', '.join(_TEST_NAMES)}: {where} has {there}. Rename or remove folders to fit."
        )
    parts = {part: classes for (_, part), classes in found.items()}
    train, test = parts["train"], parts[tests[0]]
    for part, classes in parts.items():
        empty = [label for label, images in classes.items() if not images]
        if empty or not classes:
            folder = f"class folder {part}/{min(empty)}" if empty else f"{part} folder"
            raise DataError(
                f"Every class folder must hold an image: the {folder} of {where} has none. "
                f"Fill it, or remove the class from both parts."
            )
    if train.keys() != test.keys():
        raise DataError(
            f"Training and test part must have the same classes: in {where}, only train has "
            f"{sorted(train.keys() - test.keys())}, only {tests[0]} has "
            f"{sorted(test.keys() - train.keys())}. Complete or remove these."
        )
    return train, test


def _stack(part: _Part, classes: tuple[str, ...], grey: bool) -> tuple[Tensor, Tensor]:
    ordered = [(i, p) for i, c in enumerate(classes) for _, p in sorted(part[c].items())]
    height, width = ordered[0][1].shape[:2]
    images = np.empty((len(ordered), 1 if grey else 3, height, width), dtype=np.uint8)
    for image, (_, pixels) in zip(images, ordered, strict=True):
        # Grey among colours spreads over the three channels.
        image[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([i for i, _ in ordered])
