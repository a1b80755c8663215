"""Files that a kill, a full disk or another process cannot break: written whole, by one owner."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from convsim.errors import ConvsimError, WriteError

PATIENCE = 10.0
"""Seconds to wait for a lock: a process whose parent was killed may need a moment to end."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which replaces `path` in one step when the block ends.

    Until then, and for ever if the block fails, `path` is as it was. Two processes must not replace
    one file at once: hold the folder's lock.

    Raises:
        WriteError: If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own a folder, made if needed; may be nested. The kernel frees the lock of a dead owner.

    Raises:
        ConvsimError: If another process owns the folder; names it.
        WriteError: If the folder cannot be written.
    """
    owner = folder / ".owner"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", is_singleton=True)
        try:
            held = lock.acquire(timeout=PATIENCE, poll_interval=0.05)
        except Timeout:
            name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise ConvsimError(
                f"A folder takes the results of one process at a time: {folder} is in use by "
                f"{name}. Wait for it, stop it, or choose another folder."
            ) from None
    with held:
        with writing(folder):
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's error when `path` cannot be written into a `WriteError`."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written ({error.strerror or error}). What was written before is "
            "whole: free some space or make the folder writable, then run the same command again."
        ) from error
