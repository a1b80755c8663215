"""Download the files of a data set, once and with their checksums verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from convsim.errors import DataError, require
from convsim.lab.datasets.archive import file_hash
from convsim.lab.terminal import progress_bar

TIMEOUT_SECONDS = 30
MAX_BYTES = 2**28
"""The largest download allowed; CIFAR-10, the largest known, has 170 MB."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network, and the MD5 checksum that its publisher gives."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Its name on disk."""
        return self.url.rsplit("/", 1)[-1]


def fetch(file: RemoteFile, dataset: str, root: Path, *, progress: bool) -> Path:
    """Find a file in ``root`` or ``root/dataset``, or download it into the latter.

    Args:
        file: What to fetch.
        dataset: Name of the data set, and of its folder.
        root: Folder of all that convsim keeps.
        progress: Whether to show a bar.

    Returns:
        Path of a file with the right checksum.

    Raises:
        DataError: If the file cannot be downloaded or written, or has another checksum.
        MissingExtraError: If a download is needed and pooch is not installed.
    """
    target = root / dataset / file.name
    for path in (root / file.name, target):
        if path.is_file() and file_hash(path, "md5") == file.md5:
            return path
    pooch = require("pooch", "lab")
    # Its messages say what the bar and the error below say.
    pooch.get_logger().setLevel("WARNING")
    try:
        with progress_bar(progress) as bar:
            downloader = pooch.HTTPDownloader(
                progressbar=_PoochBar(bar, file.name), timeout=TIMEOUT_SECONDS
            )
            pooch.retrieve(
                file.url,
                known_hash=f"md5:{file.md5}",
                fname=file.name,
                path=target.parent,
                downloader=downloader,
            )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data set {dataset!r} needs {file.url} with the MD5 checksum {file.md5}, and it "
            f"could not be downloaded ({type(error).__name__}: {error}). Try again, or put the "
            f"file at {target} yourself; CONVSIM_HOME or root= choose another folder."
        ) from error
    return target


class _PoochBar:
    """A bar of rich under the interface that pooch expects, which is that of tqdm."""

    def __init__(self, bar: Progress, name: str) -> None:
        self._bar = bar
        self._task = bar.add_task(f"Downloading {name}", total=None)

    @property
    def total(self) -> float | None:
        return self._bar.tasks[0].total

    @total.setter
    def total(self, value: int) -> None:
        self._bar.update(self._task, total=value or None)

    def update(self, count: int) -> None:
        """Count the bytes as they arrive; the checksum would only tell at the end."""
        self._bar.advance(self._task, count)
        if self._bar.tasks[0].completed > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")

    def reset(self) -> None:
        self._bar.update(self._task, completed=0)

    def close(self) -> None:
        self._bar.stop_task(self._task)
