"""Read the members of a tar archive as streams: nothing is extracted, every size is bounded."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from rich.progress import Progress

from convsim.errors import DataError

MAX_MEMBER_BYTES = 64 * 2**20

_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}
_CORRUPT = (
    tarfile.TarError,
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    ValueError,
    RecursionError,
)


@dataclass(frozen=True)
class Entry:
    """One file or folder of a data set; ``read`` is good until the next entry is asked for."""

    name: PurePosixPath
    is_folder: bool
    read: Callable[[], bytes]


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tar(
    path: Path, bar: Progress, *, max_member_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[Entry]:
    """Yield the members of a tar archive in their order, compressed or not.

    Args:
        path: The archive (.tar, .tar.gz, .tar.xz, .tar.bz2; told apart by content).
        bar: Shows the share of the archive that was read.
        max_member_bytes: Size above which a member is refused.

    Raises:
        DataError: If the archive is corrupt or truncated, or has a link, a device, an absolute
            name, a ``..`` in a name, or a member that is too large.
    """
    with _readable(path), path.open("rb") as file:
        head = file.read(8)
        opener = next((f for magic, f in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        if opener is None:
            _check_end_mark(file, path)
        file.seek(0)
        raw = cast(
            IO[bytes],
            bar.wrap_file(file, total=path.stat().st_size, description=f"Reading {path.name}"),
        )
        stream = _BoundedReads(opener(raw) if opener else raw, max_member_bytes, path)
        yield from _members(stream, path, max_member_bytes)


def _members(stream: _BoundedReads, path: Path, limit: int) -> Iterator[Entry]:
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            _check_member(member, name, path, limit)
            yield Entry(name, member.isdir(), lambda m=member: _read(tar, m, path))  # type: ignore[misc]
    # Compressed formats keep their checksum at the very end, behind the padding.
    if len(stream.read(limit)) == limit:
        raise DataError(
            f"A tar archive must end with its end mark: {path} goes on for {limit} bytes or more. "
            f"Pack it again."
        )


def _check_member(member: tarfile.TarInfo, name: PurePosixPath, path: Path, limit: int) -> None:
    if not (member.isreg() or member.isdir()):
        raise DataError(
            f"An archive may hold files and folders only: {member.name!r} in {path} is a link or "
            f"a device. Pack the files themselves (tar --dereference)."
        )
    if name.is_absolute() or ".." in name.parts:
        raise DataError(
            f"Names in an archive must be relative, without '..': {path} has {member.name!r}. "
            f"Pack it again from inside the folder."
        )
    if not 0 <= member.size <= limit:
        raise DataError(
            f"A file in an archive may have at most {limit} bytes: {member.name!r} in {path} has "
            f"{member.size}. Leave it out, or make it smaller."
        )


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    with _readable(path):
        file = tar.extractfile(member)
        return file.read() if file else b""


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _CORRUPT as error:
        raise DataError(
            f"A tar archive must be readable to its end: {path} is corrupt or truncated "
            f"({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _check_end_mark(file: IO[bytes], path: Path) -> None:
    """Refuse an uncompressed archive cut between two members, which tarfile takes for complete."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - tarfile.BLOCKSIZE, 0))
    if size < tarfile.BLOCKSIZE or any(file.read()):
        raise DataError(
            f"A tar archive must end with its end mark: {path} is corrupt or truncated, or no "
            f"archive at all. Copy or download it again."
        )


class _BoundedReads:
    """A stream whose single reads are bounded: tarfile trusts the sizes that headers claim."""

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self._stream, self._limit, self._path = stream, limit, path
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._limit + tarfile.BLOCKSIZE:
            raise DataError(
                f"A header in an archive may claim at most {self._limit} bytes: one in "
                f"{self._path} claims {size}. Pack it again."
            )
        return self._stream.read(size)
