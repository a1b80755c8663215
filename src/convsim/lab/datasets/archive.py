"""Read the members of a tar archive as streams: nothing is extracted, every size is bounded."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from rich.progress import Progress

from convsim.errors import DataError

MAX_MEMBER_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
"""Most that tarfile may read before a member: its header, and extensions with a long name."""
MAX_RATIO = 100
"""How many times its own size an archive may unpack to, and one member more; images: about once."""

_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}
_CORRUPT = (
    tarfile.TarError,
    EOFError,
    OSError,
    MemoryError,
    lzma.LZMAError,
    zlib.error,
    ValueError,
    RecursionError,
)


@dataclass(frozen=True)
class Entry:
    """One file or folder of a data set; call ``read`` before asking for the next entry.

    Attributes:
        name: Its name.
        is_folder: Whether it is a folder.
        read: Reads it.
        size: How many bytes it has.
        place: Where they begin in the archive; None where that is compressed.
    """

    name: PurePosixPath
    is_folder: bool
    read: Callable[[], bytes]
    size: int = 0
    place: int | None = None


def file_hash(path: Path, kind: str = "sha256") -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def read_tar(
    path: Path, bar: Progress, *, max_member_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[Entry]:
    """Yield the members of a tar archive in their order, compressed or not.

    Args:
        path: The archive (.tar, .tar.gz, .tar.xz, .tar.bz2; told apart by content).
        bar: Shows the share of the archive that was read.
        max_member_bytes: Size above which a member is refused.

    Raises:
        DataError: If the archive is corrupt or truncated, unpacks to more than ``MAX_RATIO`` times
            its size, or has a link, a device, an absolute name, a ``..`` in a name, or a member
            that is too large.
    """
    with _readable(path), path.open("rb") as file:
        head = file.read(8)
        opener = next((f for magic, f in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        file.seek(0)
        size = path.stat().st_size
        raw = cast(IO[bytes], bar.wrap_file(file, total=size, description=f"Reading {path.name}"))
        stream = _BoundedReads(opener(raw) if opener else raw, path)
        most = MAX_RATIO * size + max_member_bytes
        yield from _members(stream, path, max_member_bytes, most, packed=opener is not None)


def _members(
    stream: _BoundedReads, path: Path, limit: int, most: int, *, packed: bool
) -> Iterator[Entry]:
    stream.allow(MAX_HEADER_BYTES)
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        while member := tar.next():
            # tarfile would keep them all, and a million small members would fill the memory.
            tar.members = []  # type: ignore[attr-defined]
            name = PurePosixPath(member.name)
            _check_member(member, name, path, limit, most)
            stream.allow(member.size)
            yield Entry(
                name, member.isdir(), lambda m=member: _read(tar, m, path),  # type: ignore[misc]
                member.size, None if packed else member.offset_data,
            )  # fmt: skip
            stream.allow(MAX_HEADER_BYTES)
    # tarfile takes a header it cannot read for the end. Compressed formats keep their checksum at
    # the very end, behind the padding.
    stream.allow(limit)
    if not stream.last or any(stream.last) or any(rest := stream.read(limit)) or len(rest) == limit:
        raise DataError(
            f"A tar archive must end with its end mark and nothing behind it: {path} is corrupt or "
            f"truncated. Copy or download it again, or pack it again."
        )


def _check_member(
    member: tarfile.TarInfo, name: PurePosixPath, path: Path, limit: int, most: int
) -> None:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise DataError(
            f"An archive may hold files and folders only: {member.name!r} in {path} is a link, a "
            f"device or sparse. Pack the files themselves (tar --dereference)."
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
    if member.offset_data + member.size > most:
        raise DataError(
            f"An archive may unpack to {MAX_RATIO} times its size: {path} goes beyond at "
            f"{member.name!r}. Unpack it yourself, if you trust it, and give the folder."
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
            f"A tar archive must be readable to its end: {path} is corrupt or truncated, "
            f"or no archive at all ({type(error).__name__}: {error}). Copy or download it again."
        ) from error


class _BoundedReads:
    """A stream that limits how much is read at a time: tarfile trusts what headers claim."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path = stream, path
        self.seek, self.tell = stream.seek, stream.tell
        self.last = b""

    def allow(self, size: int) -> None:
        """Let the next reads add up to this many bytes."""
        self._limit = self._left = size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise DataError(
                f"A header in an archive may claim at most {self._limit} bytes: one in "
                f"{self._path} claims {size}. Pack it again."
            )
        self._left -= size
        self.last = self._stream.read(size)
        return self.last
