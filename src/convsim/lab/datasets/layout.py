"""What the names of images say: which part and which class each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from convsim.errors import DataError

LAYOUT = "{train,test}/{class}/{image}, inside one top folder or none"
TRAIN = "train"
TEST_NAMES = ("test", "val", "validation")
PARTS = (TRAIN, *TEST_NAMES)
UNLABELLED = ("",)
"""The classes of images that have none."""


@dataclass(frozen=True)
class Part:
    """Some of a source's images.

    Attributes:
        numbers: int64 (N,), by class and name.
        labels: int64 (N,), indices into `Layout.classes`.
    """

    numbers: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Layout:
    """The parts of a data set.

    Attributes:
        train: The training part.
        test: The test part; None if the names show none.
        classes: One name by label, sorted; `UNLABELLED` if there are none.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...]


def part_of(name: str) -> tuple[str, str, str] | None:
    """Locate a name in {train,test}/…: (top folder or "", part, what is inside), None elsewhere."""
    first, _, rest = name.partition("/")
    if first in PARTS:
        return "", first, rest
    second, _, inside = rest.partition("/")
    return (first, second, inside) if second in PARTS else None


def arrange(
    names: Sequence[str], folders: Iterable[str], where: Path, *, whole: bool = False
) -> Layout:
    """Sort images into parts and classes by their names.

    Args:
        names: Of the images, with "/" between folders, none of them hidden.
        folders: Names of the folders, as far as they are known.
        where: What they come from, for error messages.
        whole: Whether any images will do: then a part may be missing, images may lie anywhere, and
            folders need not be classes.

    Raises:
        DataError: If the layout is another one, a class is empty or missing in one part, or a name
            is there twice.
    """
    placed = [part_of(name) for name in names]
    placed_folders = [place for place in map(part_of, folders) if place is not None]
    if any(placed) or placed_folders:
        return _split_layout(names, placed, placed_folders, where, whole)
    return _whole_layout(names, where, whole)


def _split_layout(
    names: Sequence[str],
    placed: Sequence[tuple[str, str, str] | None],
    folders: Sequence[tuple[str, str, str]],
    where: Path,
    whole: bool,
) -> Layout:
    """{train,test}/{class}/{image}; names outside these parts are ignored."""
    found: dict[tuple[str, str], dict[str, list[tuple[str, int]]]] = {}
    for top, part, inside in folders:
        classes = found.setdefault((top, part), {})
        if inside and "/" not in inside:
            classes.setdefault(inside, [])
    for number, place in enumerate(placed):
        if place is None:
            continue
        top, part, inside = place
        label, _, file = inside.partition("/")
        if not file:
            label, file = "", inside
        if not whole and (not label or "/" in file):
            raise DataError(
                f"Images must lie at {LAYOUT}: {names[number]!r} in {where} lies elsewhere. "
                f"Move it into a class folder, or take it out."
            )
        found.setdefault((top, part), {}).setdefault(label, []).append((file, number))
    if whole:
        found = {
            place: {label: files for label, files in classes.items() if files}
            for place, classes in found.items()
        }
        found = {place: classes for place, classes in found.items() if classes}
    parts = _named_parts(found, where, whole)
    labels = {label for classes in parts.values() for label in classes}
    if not whole:
        _check_classes(parts, where)
    elif "" in labels:  # images beside class folders, or no class folders at all
        parts = {
            part: {"": [(f"{label}/{f}", n) for label, c in cs.items() for f, n in c]}
            for part, cs in parts.items()
        }
        labels = {""}
    classes_ = tuple(sorted(labels))
    tensors = {part: _part(classes, classes_, where, names) for part, classes in parts.items()}
    tests = [part for part in tensors if part != TRAIN]
    if len(tensors) == 1:
        return Layout(next(iter(tensors.values())), None, classes_)
    return Layout(tensors[TRAIN], tensors[tests[0]], classes_)


def _named_parts(
    found: dict[tuple[str, str], dict[str, list[tuple[str, int]]]], where: Path, whole: bool
) -> dict[str, dict[str, list[tuple[str, int]]]]:
    """Tell which part is which, and that there is one of each."""
    named = [part for _, part in found]
    tests = [part for part in named if part != TRAIN]
    one_top = len({top for top, _ in found}) == 1
    enough = bool(found) and len(tests) < 2 if whole else TRAIN in named and len(tests) == 1
    if not one_top or not enough:
        there = ", ".join("/".join(filter(None, key)) for key in sorted(found)) or "neither"
        raise _another_layout(where, there)
    return {part: classes for (_, part), classes in found.items()}


def _another_layout(where: Path, has: str, other: str = "") -> DataError:
    return DataError(
        f"A data set must have the layout {LAYOUT}, with one train folder and one of "
        f"{', '.join(TEST_NAMES)}{other}: {where} has {has}. Rename or remove folders to fit."
    )


def _check_classes(parts: dict[str, dict[str, list[tuple[str, int]]]], where: Path) -> None:
    for part, classes in parts.items():
        empty = [label for label, images in classes.items() if not images]
        if empty or not classes:
            folder = f"class folder {part}/{min(empty)}" if empty else f"{part} folder"
            raise DataError(
                f"Every class folder must hold an image: the {folder} of {where} has none. "
                f"Fill it, or remove the class from both parts."
            )
    train = parts[TRAIN]
    ((other, test),) = ((part, classes) for part, classes in parts.items() if part != TRAIN)
    if train.keys() != test.keys():
        raise DataError(
            f"Training and test part must have the same classes: in {where}, only train has "
            f"{sorted(train.keys() - test.keys())}, only {other} has "
            f"{sorted(test.keys() - train.keys())}. Complete or remove these."
        )


def _whole_layout(names: Sequence[str], where: Path, whole: bool) -> Layout:
    """{class}/{image} without parts, inside one top folder or none; else images without classes."""
    inside = list(names)
    tops = {name.partition("/")[0] for name in inside}
    if len(tops) == 1 and all("/" in name for name in inside):
        inside = [name.partition("/")[2] for name in inside]
    classed = all(name.count("/") == 1 for name in inside)
    classes = tuple(sorted({name.partition("/")[0] for name in inside})) if classed else UNLABELLED
    if len(classes) < 2:
        classes = UNLABELLED
    if not names or (classes == UNLABELLED and not whole):
        if not names:
            raise DataError(f"There are no images in {where}. Give the folder that holds them.")
        raise _another_layout(where, "neither", ", or {class}/{image}")
    found: dict[str, list[tuple[str, int]]] = {label: [] for label in classes}
    for number, name in enumerate(inside):
        label, _, file = name.partition("/") if classes != UNLABELLED else ("", "", name)
        found[label].append((file, number))
    return Layout(_part(found, classes, where, names), None, classes)


def _part(
    found: dict[str, list[tuple[str, int]]],
    classes: tuple[str, ...],
    where: Path,
    names: Sequence[str],
) -> Part:
    numbers, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(found.get(name, ()))
        for (one, number), (other, _) in pairwise(files):
            if one == other:
                raise DataError(
                    f"A file may be there only once: {where} has {names[number]!r} twice. "
                    f"Pack it again."
                )
        numbers += [number for _, number in files]
        labels += [label] * len(files)
    return Part(torch.tensor(numbers, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))
