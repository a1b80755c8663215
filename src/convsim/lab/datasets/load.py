"""Load a data set by its name or from a path."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from convsim.errors import DataError, did_you_mean
from convsim.home import home
from convsim.lab.datasets.archive import file_hash
from convsim.lab.datasets.cache import cached, find_cached
from convsim.lab.datasets.cifar import CIFAR10, CIFAR100, decode_cifar
from convsim.lab.datasets.digits import load_digits
from convsim.lab.datasets.download import RemoteFile, fetch
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.datasets.image_folder import (
    common_shape,
    decode_all,
    fits,
    leave_in_files,
    with_test_part,
)
from convsim.lab.datasets.image_sources import FolderImages
from convsim.lab.datasets.layout import LAYOUT
from convsim.lab.datasets.listing import Listing, is_listed, list_images
from convsim.lab.datasets.memory import memory
from convsim.lab.datasets.mnist import decode_mnist
from convsim.lab.datasets.photographs import load_photographs
from convsim.lab.datasets.skipping import Skipped
from convsim.lab.terminal import progress_bar


@dataclass(frozen=True)
class NamedDataset:
    """What a name stands for.

    Attributes:
        files: What to download.
        decode: Makes the data set of the downloaded files; called with their paths, and ``name``
            and ``progress`` as keywords.
    """

    files: tuple[RemoteFile, ...]
    decode: Callable[..., ImageData]


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_files(folder: str, *md5: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(folder + n, m) for n, m in zip(_IDX_NAMES, md5, strict=True))


DATASETS: dict[str, NamedDataset] = {
    "digits": NamedDataset(
        (),
        lambda paths, name, progress: load_digits(),
    ),
    "photographs": NamedDataset((), lambda paths, name, progress: load_photographs()),
    "cifar10": NamedDataset(
        (RemoteFile(_TORONTO + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        functools.partial(decode_cifar, layout=CIFAR10),
    ),
    "cifar100": NamedDataset(
        (RemoteFile(_TORONTO + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        functools.partial(decode_cifar, layout=CIFAR100),
    ),
    "mnist": NamedDataset(
        _idx_files(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        functools.partial(decode_mnist, classes=tuple("0123456789")),
    ),
    "fashion-mnist": NamedDataset(
        _idx_files(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        functools.partial(
            decode_mnist,
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        ),
    ),
}


def load_dataset(
    source: str | os.PathLike[str],
    *,
    size: int | None = None,
    stream: bool = False,
    whole: bool = False,
    skip_bad: bool = False,
    root: Path | None = None,
    progress: bool = True,
) -> ImageData:
    """Load a data set by name, or images from a folder, tar archives or Hugging Face's datasets.

    A folder, or a tar archive (compressed or not), has the layout {train,test}/{class}/{image},
    optionally inside one top folder; "test" may be called "val" or "validation". With
    {class}/{image} alone, a fifth of each class, drawn with seed 0, becomes the test part; a note
    says so. A folder of tar archives, or a pattern such as ``shards/*-{000..031}.tar``, is one of
    WebDataset shards: images, each with its class in a file of its name that ends in ".cls". A
    folder that ``datasets.save_to_disk`` wrote has a column of Image and one of ClassLabel.

    Images are JPEG, PNG, BMP, WebP, GIF (the first frame) or TIFF;
    `convsim.lab.datasets.decoding.decode_image` says what becomes of grey, CMYK, palettes,
    transparency, 16 bits and EXIF tags. Without `size`, all must have the same size.

    Images that fit in a quarter of the memory when decoded are decoded once, and the result is kept
    under ``root``, beside downloads. A JPEG's pixels, and so the fingerprint, can depend on the
    version of Pillow. Other images stay in their files.

    Args:
        source: A key of ``DATASETS``, or a path; write ``./digits`` for a folder of that name.
        size: Height and width to scale the largest square at each image's centre to, bilinear and
            antialiased.
        stream: Leave images in their files, however few there are. Without `size`, they keep their
            own.
        whole: Take any images: a single part serves as both, and folders need not be classes.
        skip_bad: Leave out images that cannot be read; a note names them.
        root: Folder for downloads and decoded data sets. By default that of `convsim.home.home`:
            the environment variable CONVSIM_HOME, or else ``~/.cache/convsim``.
        progress: Whether to show bars on stderr.

    Returns:
        The data set, uint8: a `torch.Tensor` of images in memory, or a
        `convsim.lab.datasets.image_files.ImageFiles`.

    Raises:
        DataError: If the source is unknown, cannot be downloaded, is corrupt or unsafe, or has
            another layout.
        MissingExtraError: If an optional dependency is not installed.

    Cost: listing a million files takes seconds and some 100 bytes of memory each; a compressed
    archive is read once, and its images kept as they are encoded, in at most a quarter of the
    memory.

    Example:
        >>> data = load_dataset("digits")
        >>> data.train_images.shape, data.test_images.shape, data.train_images.dtype
        (torch.Size([1297, 1, 8, 8]), torch.Size([500, 1, 8, 8]), torch.uint8)
    """
    root = Path(root).expanduser() if root is not None else home()
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text in DATASETS:
        data = _load_named(text, root, progress)
        return data if size is None else data.resized(size)
    if not is_listed(path):
        raise DataError(
            f"A data set must be one of {', '.join(DATASETS)}, or the path of a folder or tar "
            f"archive with the layout {LAYOUT}: there is no {text!r}."
            f"{did_you_mean(text, DATASETS) or ' Check the spelling.'}"
        )
    return _Loading(path, root, size, stream, whole, skip_bad, progress).load()


@dataclass(frozen=True)
class _Loading:
    """One load of a path, with the options of `load_dataset`."""

    path: Path
    root: Path
    size: int | None
    stream: bool
    whole: bool
    skip_bad: bool
    progress: bool

    def load(self) -> ImageData:
        key = None
        if not self.stream and self.path.is_file() and self.path.stat().st_size <= memory() // 4:
            key = self._key(file_hash(self.path))
            if (data := find_cached(key, self._name(), self.root)) is not None:
                return data
        skipped = Skipped(self.skip_bad)
        with progress_bar(self.progress) as bar:
            listing = list_images(self.path, bar, whole=self.whole, skipped=skipped)
        if not self.stream and isinstance(listing.source, FolderImages):
            key = self._key(listing.key)
            if (data := find_cached(key, self._name(), self.root)) is not None:
                return data
        layout, notes = with_test_part(listing.layout, self.path, whole=self.whole)
        listing = replace(listing, layout=layout)

        def decode() -> ImageData:
            data = self._decoded(listing, skipped)
            said = (f"{skipped}.",) if skipped.names else ()
            return replace(data, notes=(*notes, *said))

        return decode() if key is None else cached(key, self._name(), self.root, decode)

    def _decoded(self, listing: Listing, skipped: Skipped) -> ImageData:
        size = None if self.size is None else (self.size, self.size)
        if self.stream and size is None:
            return leave_in_files(listing, self._name(), (0, 0), 3, skipped)
        shape = common_shape(listing, resized=size is not None)
        channels = 1 if shape.grey else 3
        layout = listing.layout
        count = len(layout.train.numbers)
        if layout.test is not None and layout.test is not layout.train:
            count += len(layout.test.numbers)
        if self.stream or not fits(count, channels, size or shape.size):
            return leave_in_files(listing, self._name(), size or shape.size, channels, skipped)

        with progress_bar(self.progress) as bar:
            return decode_all(listing, self._name(), size, bar, skipped)

    def _key(self, key: str) -> str:
        """Name results of different options differently."""
        chosen = (self.size, self.whole, self.skip_bad)
        return key if chosen == (None, False, False) else f"{key}-{'-'.join(map(str, chosen))}"

    def _name(self) -> str:
        return _stem(self.path) + (f"-{self.size}px" if self.size is not None else "")


def _load_named(name: str, root: Path, progress: bool) -> ImageData:
    dataset = DATASETS[name]
    paths = [fetch(file, name, root, progress=progress) for file in dataset.files]
    decode = functools.partial(dataset.decode, paths, name=name, progress=progress)
    if not paths:
        return decode()
    key = hashlib.sha256("".join([name, *map(file_hash, paths)]).encode()).hexdigest()
    return cached(key, name, root, decode)


def _stem(path: Path) -> str:
    name = path.absolute().name or path.resolve().name
    return re.sub(r"\.(tar|tgz|txz|tbz2)(\.\w+)?$", "", name) if path.is_file() else name
