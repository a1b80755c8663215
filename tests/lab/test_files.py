"""Files and folders that neither a kill, nor a full disk, nor another process can spoil."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest
import torch

from convsim.errors import ConvsimError, WriteError
from convsim.lab import files
from convsim.lab.comparison import compare
from convsim.lab.datasets import load_dataset
from convsim.lab.files import locked, replacing
from convsim.lab.methods import parse_method
from convsim.lab.records import append_record, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.training import train

OWN = """
import sys, time
from pathlib import Path
from convsim.lab.files import locked
with locked(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that owns the folder."""
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


@pytest.fixture
def run():
    digits = load_dataset("digits").subset(train=150, test=50)
    return Run(parse_method("none"), 0, Recipe(width=4, epochs=3, batch_size=32), digits)


@contextmanager
def size_limit(folder):
    """No file may be longer than 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(folder):
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    try:
        yield
    finally:
        (folder / "filler").unlink()


@contextmanager
def read_only_disk(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def read_only_folder(folder):
    records = list(folder.glob("*.jsonl"))  # to append to one takes leave of its own
    for path in (folder, *records):
        path.chmod(0o555)
    try:
        with bound_by_permissions():
            yield
    finally:
        for path in (folder, *records):
            path.chmod(0o755)


@contextmanager
def bound_by_permissions():
    """Let root give up, in this thread, the capability to write where it may not (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, less = ((ctypes.c_uint32 * 6)() for _ in range(2))
    for held in (before, less):
        assert libc.capget(header, held) == 0
    less[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE of what is in effect
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.fixture(params=[size_limit, full_disk, read_only_disk, read_only_folder])
def trouble(request, tmp_path):
    """A folder, and what can befall it."""
    disk = request.param in (full_disk, read_only_disk)
    if disk:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs to mount a disk: run as root with CAP_SYS_ADMIN")
    yield tmp_path, request.param
    if disk:
        subprocess.run(["umount", str(tmp_path)], check=True)


def stop(*_):
    raise KeyboardInterrupt


def test_trouble_leaves_the_last_checkpoint_whole(trouble, run):
    folder, befall = trouble
    with pytest.raises(KeyboardInterrupt):
        train(run, folder, stop)
    before = (folder / "last.ckpt").read_bytes()
    with befall(folder), pytest.raises(WriteError, match=r"cannot be written \(\w.*\). What was"):
        train(run, folder)
    assert (folder / "last.ckpt").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", ".lock", ".owner"}
    resumed, _ = train(run, folder)
    for one, other in zip(train(run)[0].parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trouble_leaves_the_records_whole(trouble, run):
    folder, befall = trouble
    path, grid = folder / "records.jsonl", (run.data, run.recipe, [run.method], [0, 1], folder)
    with pytest.raises(KeyboardInterrupt):
        compare(*grid, report=stop)
    before = path.read_bytes()
    with befall(folder), pytest.raises(WriteError, match=r"cannot be written \(\w.*\). What was"):
        compare(*grid)
    assert path.read_bytes() == before
    compare(*grid)
    assert path.read_bytes().startswith(before)
    assert len(read_records(path)) == 2


def test_a_record_that_fits_in_part_is_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"a": 1})
    before = path.read_bytes()
    with size_limit(tmp_path), pytest.raises(WriteError, match="No space left on device"):
        append_record(path, {"b": "long" * 100})
    assert path.read_bytes() != before
    assert read_records(path) == [{"a": 1}]
    append_record(path, {"c": 3})
    assert read_records(path) == [{"a": 1}, {"c": 3}]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"another"):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        stop()
    assert path.read_bytes() == b"another"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_one_owner_who_is_named(tmp_path, owner, monkeypatch, run):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    attempts = [
        lambda: train(run, tmp_path),
        lambda: compare(run.data, run.recipe, [run.method], [0], tmp_path),
    ]
    for attempt in attempts:
        with pytest.raises(ConvsimError, match=f"{tmp_path} is in use by process {owner.pid} on"):
            attempt()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".owner"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_does_not_block(tmp_path, owner, number):
    owner.send_signal(number)
    owner.wait()
    with locked(tmp_path), locked(tmp_path):
        assert (tmp_path / ".owner").read_text().startswith(f"process {os.getpid()} on ")
