"""Where encoded images lie, each read by number: a folder, tar archives, memory, Arrow."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from convsim.errors import DataError
from convsim.lab.datasets.archive import MAX_MEMBER_BYTES


class _ByNumber(Sequence[str]):
    """Names that are made when they are asked for."""

    @abstractmethod
    def _name(self, number: int) -> str:
        """Make the name of a number from 0 on."""

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...
    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        """Return one name, or those of a slice."""
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._name(number % len(self))


class Names(_ByNumber):
    """Many names in one block of memory, which processes share without copying it.

    Memory: the names' bytes, and 8 for each.
    """

    def __init__(self, names: Iterable[str]) -> None:
        block, ends = bytearray(), array("q", [0])
        for name in names:
            block += os.fsencode(name)
            ends.append(len(block))
        self._block, self._ends = bytes(block), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _name(self, number: int) -> str:
        return os.fsdecode(self._block[self._ends[number] : self._ends[number + 1]])

    @property
    def block(self) -> bytes:
        """All names one after another, for a hash."""
        return self._block + self._ends.tobytes()


class ImageSource(ABC):
    """Encoded images, by their number.

    Attributes:
        where: What they come from, for error messages.
        names: What they are called there.
        sizes: How many bytes each has; empty where that is not known.
    """

    where: Path
    names: Sequence[str]
    sizes: array[int]

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Read one file.

        Raises:
            DataError: If it cannot be read, or is too large.
        """

    @cached_property
    def digest(self) -> bytes:
        """A hash of the names and sizes."""
        digest = hashlib.sha256(self.sizes.tobytes())
        for name in self.names:
            digest.update(os.fsencode(name) + b"\n")
        return digest.digest()


class FolderImages(ImageSource):
    """Images that are files of a folder.

    Attributes:
        times: When each was changed, in nanoseconds.
    """

    def __init__(self, where: Path, names: Names, sizes: array[int], times: array[int]) -> None:
        self.where, self.names, self.sizes, self.times = where, names, sizes, times

    def read(self, number: int) -> bytes:
        """Read one file."""
        return read_file(self.where / self.names[number])


class TarImages(ImageSource):
    """Images in uncompressed tar archives, read at the places that the headers give."""

    def __init__(
        self,
        where: Path,
        archives: Sequence[Path],
        names: Names,
        sizes: array[int],
        places: array[int],
        starts: Sequence[int],
    ) -> None:
        self.where, self.names, self.sizes = where, names, sizes
        self._archives, self._places, self._starts = archives, places, starts

    def read(self, number: int) -> bytes:
        """Read one member."""
        of = max(n for n, start in enumerate(self._starts) if start <= number)
        path = self._archives[of]
        try:
            with path.open("rb") as file:
                content = os.pread(file.fileno(), self.sizes[number], self._places[number])
        except OSError as error:
            raise unreadable(path, error) from error
        if len(content) < self.sizes[number]:
            raise DataError(f"The archive {path} became shorter while it was read. Run it again.")
        return content


class HeldImages(ImageSource):
    """Images of a compressed archive, as they are encoded, in memory."""

    def __init__(self, where: Path, names: Sequence[str], contents: Sequence[bytes]) -> None:
        self.where, self.names, self._contents = where, names, contents
        self.sizes = array("q", map(len, contents))

    def read(self, number: int) -> bytes:
        """Return one file."""
        return self._contents[number]


class ArrowImages(ImageSource):
    """Images of a column of a Hugging Face data set on disk, which is mapped into memory."""

    def __init__(self, where: Path, rows: Any, column: str) -> None:
        self.where, self._rows, self._column = where, rows, column
        self.names: Sequence[str] = _RowNames(len(rows))
        self.sizes = array("q")

    def read(self, number: int) -> bytes:
        """Read one row."""
        cell = self._rows[number][self._column]
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if content is None and isinstance(cell, dict) and cell.get("path"):
            return read_file(Path(cell["path"]))
        if not isinstance(content, bytes):
            raise DataError(
                f"A row must hold an encoded image: {self.names[number]} of {self.where} holds "
                f"{type(content).__name__}. Save the data set with its images again."
            )
        return content


class _RowNames(_ByNumber):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def _name(self, number: int) -> str:
        return f"row {number}"


def read_file(path: Path) -> bytes:
    """Read a regular file of moderate size.

    Raises:
        DataError: If it is a device or a pipe, cannot be read, or is too large.
    """
    if path.exists() and not path.is_file():  # it might never end
        raise unreadable(path, OSError("a device or a pipe"))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > MAX_MEMBER_BYTES:
        raise DataError(
            f"An image may have at most {MAX_MEMBER_BYTES} bytes: {path} has more. Make it smaller."
        )
    return content


def unreadable(path: Path, error: OSError) -> DataError:
    """Say that a file or folder cannot be read."""
    return DataError(
        f"Every file and folder of a data set must be readable: {path} is not ({error}). "
        f"Correct its permissions or the link, or take it out."
    )


def regular(path: Path, item: os.DirEntry[str]) -> os.stat_result:
    """Return what the file system says of a file.

    Raises:
        DataError: If it is no regular file, or a link to nowhere.
    """
    try:
        status = item.stat()
    except OSError as error:
        raise unreadable(path / item.name, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path / item.name, OSError("a device or a pipe"))
    return status


def walk(
    folder: Path, name: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Path, os.DirEntry[str], bool]]:
    """Walk a folder and those inside it in the order of names, hidden ones left out.

    Links are followed, but not to a folder that they lie in.

    Yields:
        (name, folder, entry, whether it is a folder itself).

    Raises:
        DataError: If a folder cannot be read.
    """
    try:
        status = os.stat(folder)
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError as error:
        raise unreadable(folder, error) from error
    here = above | {(status.st_dev, status.st_ino)}
    for item in items:
        if item.name.startswith("."):
            continue
        inner = f"{name}/{item.name}" if name else item.name
        is_folder = _is_folder(item)
        yield inner, folder, item, is_folder
        if is_folder:
            found = item.stat()
            if (found.st_dev, found.st_ino) not in here:
                yield from walk(folder / item.name, inner, here)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False
