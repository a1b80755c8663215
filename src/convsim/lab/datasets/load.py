"""Load a data set by its name or from a path."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convsim.errors import DataError, did_you_mean
from convsim.home import home
from convsim.lab.datasets.archive import read_tar, sha256
from convsim.lab.datasets.cache import cached
from convsim.lab.datasets.cifar import CIFAR10, CIFAR100, decode_cifar
from convsim.lab.datasets.digits import load_digits
from convsim.lab.datasets.download import RemoteFile, fetch
from convsim.lab.datasets.image_data import ImageData
from convsim.lab.datasets.image_folder import (
    LAYOUT,
    decode_image_folder,
    folder_key,
    read_folder,
)
from convsim.lab.datasets.mnist import decode_mnist
from convsim.lab.datasets.photographs import load_photographs
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
    source: str | os.PathLike[str], *, root: Path | None = None, progress: bool = True
) -> ImageData:
    """Load a data set by name, or from a folder or tar archive of images.

    A path has the layout {train,test}/{class}/{image}, optionally inside one top folder; "test"
    may be called "val" or "validation". Images are JPEG, PNG, BMP, WebP, GIF (of which the first
    frame is taken) or TIFF, of one size when they are turned as their EXIF tags say.
    Decoding happens once: the result is kept under ``root``, together with what is downloaded.
    Pixels of a JPEG, and so the fingerprint, can depend on the version of Pillow that decoded it.

    Args:
        source: A key of ``DATASETS``, or a path; write ``./digits`` for a folder of that name.
        root: Folder for downloads and decoded data sets. Defaults to the environment variable
            CONVSIM_HOME, or ``~/.cache/convsim`` without it, as `convsim.home.home` has it.
        progress: Whether to show bars on stderr.

    Returns:
        The whole data set in memory, uint8.

    Raises:
        DataError: If the source is unknown, cannot be downloaded, is corrupt or unsafe, or has
            another layout.
        MissingExtraError: If an optional dependency is not installed.

    Example:
        >>> data = load_dataset("digits")
        >>> data.train_images.shape, data.test_images.shape, data.train_images.dtype
        (torch.Size([1297, 1, 8, 8]), torch.Size([500, 1, 8, 8]), torch.uint8)
    """
    root = Path(root).expanduser() if root is not None else home()
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text in DATASETS:
        return _load_named(text, root, progress)
    if path.is_dir():
        decode, key = _decode_folder, folder_key(path)
    elif path.is_file():
        decode, key = _decode_tar, sha256(path)
    else:
        raise DataError(
            f"A data set must be one of {', '.join(DATASETS)}, or the path of a folder or tar "
            f"archive with the layout {LAYOUT}: there is no {text!r}."
            f"{did_you_mean(text, DATASETS) or ' Check the spelling.'}"
        )
    return cached(key, _stem(path), root, functools.partial(decode, path, progress))


def _load_named(name: str, root: Path, progress: bool) -> ImageData:
    dataset = DATASETS[name]
    paths = [fetch(file, name, root, progress=progress) for file in dataset.files]
    decode = functools.partial(dataset.decode, paths, name=name, progress=progress)
    if not paths:
        return decode()
    key = hashlib.sha256("".join([name, *map(sha256, paths)]).encode()).hexdigest()
    return cached(key, name, root, decode)


def _decode_folder(path: Path, progress: bool) -> ImageData:
    with progress_bar(progress) as bar:
        return decode_image_folder(read_folder(path, bar), name=_stem(path), where=path)


def _decode_tar(path: Path, progress: bool) -> ImageData:
    with progress_bar(progress) as bar:
        return decode_image_folder(read_tar(path, bar), name=_stem(path), where=path)


def _stem(path: Path) -> str:
    name = path.absolute().name or path.resolve().name
    return re.sub(r"\.(tar|tgz|txz|tbz2)(\.\w+)?$", "", name) if path.is_file() else name
