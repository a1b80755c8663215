"""List the images of a data set by name, without reading one of them."""

from __future__ import annotations

import glob
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress

from convsim.errors import DataError, require
from convsim.lab.datasets.archive import Entry, read_tar
from convsim.lab.datasets.decoding import FORMATS
from convsim.lab.datasets.image_sources import (
    ArrowImages,
    FolderImages,
    HeldImages,
    ImageSource,
    Names,
    TarImages,
    regular,
    walk,
)
from convsim.lab.datasets.layout import (
    PARTS,
    TEST_NAMES,
    TRAIN,
    UNLABELLED,
    Layout,
    Part,
    arrange,
    part_of,
)
from convsim.lab.datasets.memory import memory
from convsim.lab.datasets.skipping import Skipped

MAX_LABEL_BYTES = 1024
_ARROW_FILES = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Listing:
    """The images of a data set, and what each is.

    Attributes:
        source: The images.
        layout: Their parts and classes.
        folders: Names of the folders among them.
    """

    source: ImageSource
    layout: Layout
    folders: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A hash of where a folder is, and its files' names, sizes and times of change."""
        source = self.source
        assert isinstance(source, FolderImages)
        assert isinstance(source.names, Names)
        # The place counts too: unpacked archives often share names, sizes and rounded times.
        digest = hashlib.sha256(os.fsencode(source.where.resolve()))
        for part in (source.names.block, source.sizes.tobytes(), source.times.tobytes()):
            digest.update(part)
        digest.update("\n".join(self.folders).encode(errors="surrogateescape"))
        return digest.hexdigest()


def list_images(path: Path, bar: Progress, *, whole: bool, skipped: Skipped) -> Listing:
    """List a folder, one or several tar archives, or a Hugging Face data set on disk.

    Args:
        path: A folder of images, of tar archives (WebDataset shards), or saved by
            ``datasets.save_to_disk``; an archive, or a pattern such as ``shards/*-{0..9}.tar``.
        bar: Shows what is done.
        whole: As in `convsim.lab.datasets.layout.arrange`.
        skipped: Collects the files that are left out; if none may be, such a file is an error.

    Raises:
        DataError: As `convsim.lab.datasets.load.load_dataset`.
        MissingExtraError: If the data set is Hugging Face's and ``datasets`` is not installed.
    """
    if shards := _shards(path):
        return _list_shards(path, shards, bar, whole, skipped)
    if path.is_file():
        return _list_tar(path, bar, whole, skipped)
    if any((path / name).is_file() for name in _ARROW_FILES):
        return _list_arrow(path, whole)
    return _list_folder(path, whole, skipped)


def is_listed(path: Path) -> bool:
    """Tell whether there is anything at a path, or that a pattern names."""
    return path.exists() or bool(_shards(path))


def _list_folder(path: Path, whole: bool, skipped: Skipped) -> Listing:
    sizes, times, folders = array("q"), array("q"), []

    def files() -> Iterator[str]:
        for root in _roots(path):
            above = _identities(path, *(path / parent for parent in Path(root).parents))
            for name, folder, item, is_folder in walk(path / root, root, above):
                if is_folder:
                    folders.append(name)
                elif _is_image(name, path, skipped):
                    try:
                        status = regular(folder, item)
                    except DataError as error:
                        skipped.skip(name, error)
                        continue
                    sizes.append(status.st_size)
                    times.append(status.st_mtime_ns)
                    yield name

    names = Names(files())
    tops = [root for root in _roots(path) if root]
    return Listing(
        FolderImages(path, names, sizes, times),
        arrange(names, [*tops, *folders], path, whole=whole),
        (*tops, *folders),
    )


def _roots(path: Path) -> list[str]:
    """List the folders of {train,test}/…, or "" for the whole folder where there are none."""
    if not path.is_dir():
        return [""]
    inside = sorted(
        item.name for item in os.scandir(path) if not item.name.startswith(".") and item.is_dir()
    )
    found = [name for name in inside if name in PARTS]
    found += [
        f"{top}/{part}"
        for top in inside
        if top not in PARTS
        for part in PARTS
        if (path / top / part).is_dir()
    ]
    return sorted(found) or [""]


def _identities(*folders: Path) -> frozenset[tuple[int, int]]:
    statuses = [folder.stat() for folder in folders if folder.is_dir()]
    return frozenset((status.st_dev, status.st_ino) for status in statuses)


def _list_tar(path: Path, bar: Progress, whole: bool, skipped: Skipped) -> Listing:
    names: list[str] = []
    sizes, places, folders = array("q"), array("q"), []
    contents: list[bytes] = []
    held = 0
    for name, entry in _visible(read_tar(path, bar)):
        if entry.is_folder:
            folders.append(name)
        elif _plays_a_part(name) and _is_image(name, path, skipped):
            names.append(name)
            if entry.place is not None:
                sizes.append(entry.size)
                places.append(entry.place)
                continue
            contents.append(entry.read())
            held += len(contents[-1])
            if held > memory() // 4:
                raise DataError(
                    f"The images of a compressed archive must fit in a quarter of this machine's "
                    f"memory: {path} goes beyond at {name!r}. Unpack it, and give the folder."
                )
    layout = arrange(names, folders, path, whole=whole)
    if contents:
        return Listing(HeldImages(path, Names(names), contents), layout)
    return Listing(TarImages(path, [path], Names(names), sizes, places, [0]), layout)


def _visible(entries: Iterator[Entry]) -> Iterator[tuple[str, Entry]]:
    for entry in entries:
        name = str(PurePosixPath(entry.name))
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, entry


def _plays_a_part(name: str) -> bool:
    """Tell whether a name matters: an unknown format outside the parts does not."""
    return Path(name).suffix.lower() in FORMATS or part_of(name) is not None


def _shards(path: Path) -> list[Path]:
    """List the tar archives that a pattern names, or that are all that a folder has."""
    text = str(path)
    if path.is_dir():
        inside = [item for item in os.scandir(path) if not item.name.startswith(".")]
        archives = sorted(Path(item) for item in inside if item.name.endswith(".tar"))
        images = any(item.is_dir() or Path(item).suffix.lower() in FORMATS for item in inside)
        return [] if images else archives
    if path.exists() or not any(mark in text for mark in "*?[{"):
        return []
    return sorted({Path(found) for one in _braces(text) for found in glob.glob(one)})


def _braces(text: str) -> list[str]:
    """Expand {000..012} and {a,b}, as a shell and WebDataset do."""
    head, opening, rest = text.partition("{")
    inside, closing, tail = rest.partition("}")
    if not opening or not closing:
        return [text]
    first, dots, last = inside.partition("..")
    choices = inside.split(",")
    if dots and first.isdigit() and last.isdigit() and int(last) - int(first) < 10**6:
        choices = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [head + choice + more for choice in choices for more in _braces(tail)]


def _list_shards(
    path: Path, shards: list[Path], bar: Progress, whole: bool, skipped: Skipped
) -> Listing:
    """List WebDataset shards: an image, and its class in a file of its name that ends in .cls."""
    source, labels = _read_shards(path, shards, bar, skipped)
    keys = [os.path.splitext(name)[0] for name in source.names]
    if not keys:
        raise DataError(f"Shards must hold images: {path} has none. Give others.")
    if not all(key in labels for key in keys):
        if not whole:
            raise DataError(
                f"Training needs classes: not every image of {path} has a file of its name that "
                "ends in .cls. Pack the shards with their classes."
            )
        every = Part(torch.arange(len(keys)), torch.zeros(len(keys), dtype=torch.int64))
        return Listing(source, Layout(every, None, UNLABELLED))
    found = {labels[key] for key in keys}
    numeric = all(label.isdigit() for label in found)
    classes = tuple(sorted(found, key=int if numeric else str))
    place = {label: n for n, label in enumerate(classes)}
    numbers = torch.tensor([place[labels[key]] for key in keys])
    by_class = numbers.argsort(stable=True)
    return Listing(source, Layout(Part(by_class, numbers[by_class]), None, classes))


def _read_shards(
    path: Path, shards: list[Path], bar: Progress, skipped: Skipped
) -> tuple[TarImages, dict[str, str]]:
    """Read where the images of shards lie, and each class by the name of its image's file."""
    names: list[str] = []
    sizes, places = array("q"), array("q")
    starts, labels = [], {}
    for shard in shards:
        starts.append(len(names))
        for name, entry in _visible(read_tar(shard, bar)):
            if entry.is_folder:
                continue
            if entry.place is None:
                raise DataError(
                    f"Shards are read where their headers say: {shard} is compressed. Unpack it "
                    "to a plain .tar."
                )
            own = f"{shard.name}/{name}"
            if name.endswith(".cls") and entry.size <= MAX_LABEL_BYTES:
                labels[own.removesuffix(".cls")] = entry.read().decode(errors="replace").strip()
            elif _is_image(name, shard, skipped):
                names.append(own)
                sizes.append(entry.size)
                places.append(entry.place)
    return TarImages(path, shards, Names(names), sizes, places, starts), labels


def _list_arrow(path: Path, whole: bool) -> Listing:
    """List a data set, or its splits, that ``save_to_disk`` of Hugging Face's datasets wrote."""
    datasets: Any = require("datasets", "datasets")
    splits = _splits(datasets, path)
    joined = datasets.concatenate_datasets(splits) if len(splits) > 1 else splits[0]
    column = _column(joined, datasets.Image, path)
    rows = joined.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    source = ArrowImages(path, rows.with_format(None), column)
    labelled = [
        n for n, feature in joined.features.items() if isinstance(feature, datasets.ClassLabel)
    ]
    classes = tuple(joined.features[labelled[0]].names) if labelled else UNLABELLED
    if not labelled and not whole:
        raise DataError(
            f"Training needs classes: the columns of {path} are {', '.join(joined.features)}, and "
            "none is a ClassLabel. Cast one with cast_column(name, ClassLabel(names=…))."
        )
    labels = torch.tensor([*joined[labelled[0]]]) if labelled else torch.zeros(len(joined)).long()
    lengths = [*map(len, splits)]
    parts = map(Part, torch.arange(len(joined)).split(lengths), labels.split(lengths))
    return Listing(source, Layout(next(parts), next(parts, None), classes))


def _splits(datasets: Any, path: Path) -> list[Any]:
    """Load the split to train on and the one to test on, or the only one of these."""
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"A folder of Hugging Face's datasets must be one that save_to_disk wrote: {path} "
            f"cannot be read ({type(error).__name__}: {error}). Save it again."
        ) from error
    found = dict(loaded) if isinstance(loaded, dict) else {TRAIN: loaded}
    test = next((name for name in TEST_NAMES if name in found), None)
    chosen = [found[name] for name in (TRAIN, test) if name in found]
    if not chosen:
        raise DataError(
            f"A data set must have a split train, test or validation: {path} has "
            f"{', '.join(map(repr, found))}. Save one under such a name."
        )
    return chosen


def _column(dataset: Any, kind: Any, path: Path) -> str:
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if not found:
        raise DataError(
            f"A data set of images must have a column of Image: {path} has "
            f"{', '.join(dataset.features)}. Cast one with cast_column(name, Image())."
        )
    return str(found[0])


def _is_image(name: str, where: Path, skipped: Skipped) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in FORMATS:
        return True
    if suffix and Image.registered_extensions().get(suffix) in Image.OPEN:
        skipped.skip(
            name,
            DataError(
                f"Images must be {', '.join(FORMATS)}: {name!r} in {where} is not. Convert it."
            ),
        )
    return False
