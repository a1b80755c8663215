"""Kill training and grids with SIGKILL, resume them, and compare with what was never killed.

    python soak/kills.py --kills 60 --out soak/results/kills.jsonl

Half of the kills come after a random time, half in the midst of a random operation on files: a
write is cut in two, or the process dies just before a flush, a replacement, a truncation or a
deletion. The data set is a folder of images, so that its cache is built under fire too. A chain of
kills ends when a run finishes: what it leaves must be bit for bit what an uninterrupted run leaves.
Started again, the program goes on after the chains on record for the same commit. It prints a
summary, and exits with 1 if anything differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from convsim.cli.app import run as convsim
from convsim.lab.datasets import load_dataset
from convsim.lab.records import Record, append_record, environment, read_records, record_key

SMALL = ("--width", "4", "--epochs", "4", "--batch-size", "16")
TUNED = ("--method", "none", "--method", "recommended@0.1,1", "--seeds", "1", "--tuning-seeds", "1")
PAIRED = ("--method", "none", "--method", "recommended@0.1", "--seeds", "2", "--jobs", "2")
VICTIMS = {
    "train": ("train", "--method", "recommended-both", *SMALL),
    "train auto": ("train", "--method", "recommended@auto", *SMALL),
    "compare": ("compare", *TUNED, *SMALL),
    "compare on 2": ("compare", *PAIRED, *SMALL),
}
PLACES = {
    "checkpoint": "last.ckpt",
    "records": "records.jsonl",
    "cache": "-1.safetensors",
    "random time": "after ",
}
"""Where a kill can hit, and what it is then called in the record."""

RECORDS = Path(__file__).parent / "results" / "kills.jsonl"

Moment = tuple[str, float]
"""("after", seconds), ("in", number of a file operation), or ("never", 0)."""


def write_images(folder: Path) -> None:
    """Write handwritten digits as a folder of images."""
    digits = load_dataset("digits").subset(train=200, test=60, seed=0)
    for part in ("train", "test"):
        images, labels = getattr(digits, f"{part}_images"), getattr(digits, f"{part}_labels")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / str(label.item()) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)


def sabotage(moment: int, tell: Connection) -> Callable[[], int]:
    """Let this process die in the midst of its operation on files of that number, from 1.

    Returns:
        A function that counts the operations so far.
    """
    numbers, reached = count(1), 0

    def replace(owner: Any, name: str, *, half: bool = False) -> None:
        original = getattr(owner, name)

        def operation(*arguments: Any, **options: Any) -> Any:
            nonlocal reached
            what = arguments[0]
            where = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            if where.startswith("pipe:"):  # to the processes of a pool
                return original(*arguments, **options)
            reached = next(numbers)
            if reached == moment:
                tell.send(f"{name} {Path(where).name}")
                if half:
                    content = memoryview(arguments[1])
                    original(what, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, operation)

    replace(os, "write", half=True)
    replace(Path, "write_bytes", half=True)
    for name in ("fsync", "replace", "ftruncate", "rmdir"):
        replace(os, name)
    return lambda: reached


def child(arguments: list[str], home: Path, moment: Moment, tell: Connection) -> None:
    """Run the command line, perhaps to die in a file operation; tell how many there were."""
    os.environ["CONVSIM_HOME"] = str(home)
    with (home.parent / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    operations = sabotage(int(moment[1]) if moment[0] == "in" else 0, tell)
    sys.argv = ["convsim", *arguments]
    convsim_code = 0
    try:
        convsim()
    except SystemExit as stop:
        convsim_code = stop.code or 0
    tell.send(operations())
    sys.exit(convsim_code)


def attempt(victim: str, images: Path, folder: Path, moment: Moment) -> tuple[bool, Any]:
    """Run a victim in a folder until it ends or is killed.

    Returns:
        Whether it was killed; and where, or how many operations on files it did.
    """
    command, *options = VICTIMS[victim]
    arguments = [command, str(images), "--out", str(folder / "out"), *options]
    folder.mkdir(parents=True, exist_ok=True)
    receive, tell = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(
        target=child, args=(arguments, folder / "home", moment, tell)
    )
    process.start()
    tell.close()
    process.join(moment[1] if moment[0] == "after" else None)
    if process.is_alive():
        process.kill()
        process.join()
    said: Any = f"after {moment[1]:.2f} s"
    with suppress(EOFError):  # killed from outside, it had nothing to say
        said = receive.recv()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{victim} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return process.exitcode != 0, said


def outcome(folder: Path) -> Record:
    """Describe what a run has left, without times and dates: files, hash of weights, records."""
    out = folder / "out"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    weights = out / "model.safetensors"
    records = read_records(out / "records.jsonl")
    if weights.exists():
        records.append(json.loads((out / "record.json").read_text()))
    for record in records:
        del record["environment"]
        for name in ("seconds", "initialization_seconds"):
            record["result"].pop(name, None)
    return {
        "files": files,
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None,
        "records": sorted(records, key=lambda record: record["key"]),
    }


def chain(
    victim: str, seed: int, images: Path, folder: Path, duration: float, operations: int
) -> list[str]:
    """Kill a victim at random moments until a run of it finishes; say where it was killed."""
    draw = random.Random(f"{victim} {seed}")
    kills: list[str] = []
    while True:
        number = draw.randint(1, draw.randint(1, operations))  # the cache is written early
        after, inside = ("after", draw.uniform(0, duration)), ("in", number)
        killed, where = attempt(victim, images, folder, draw.choice([after, inside]))
        if not killed:
            return kills
        kills.append(where)
        print(f"{victim} {seed}: killed {where}", file=sys.stderr)


def soak(victims: list[str], kills: int, out: Path, root: Path) -> list[Record]:
    """Run chains, victim by victim, until there are kills enough; return their records."""
    commit = environment()["commit"]
    records = [r for r in read_records(out) if r["configuration"]["commit"] == commit]
    if not records:
        out.unlink(missing_ok=True)  # of another commit
    on_record = {record["key"] for record in records}
    images = root / "images"
    write_images(images)
    whole: dict[str, tuple[float, int, Record]] = {}
    for seed, victim in ((seed, victim) for seed in count() for victim in victims):
        configuration = {"victim": victim, "seed": seed, "commit": commit}
        key = record_key(configuration)
        if sum(len(record["result"]["kills"]) for record in records) >= kills:
            return records
        if key in on_record:
            continue
        if victim not in whole:
            started = time.perf_counter()
            _, operations = attempt(victim, images, root / victim, ("never", 0))
            whole[victim] = time.perf_counter() - started, operations, outcome(root / victim)
        duration, operations, expected = whole[victim]
        folder = root / f"{victim} {seed}"
        result: Record = {"kills": chain(victim, seed, images, folder, duration, operations)}
        found = outcome(folder)
        result["differs"] = [name for name in expected if found[name] != expected[name]]
        record = {
            "schema": 1, "key": key, "configuration": configuration, "result": result,
            "command": shlex.join(["python", *sys.argv]), "environment": environment(),
        }  # fmt: skip
        append_record(out, record)
        records.append(record)
        shutil.rmtree(folder)
    raise AssertionError


def places(records: list[Record]) -> Counter[str]:
    """Count the kills by where they hit."""
    kills = [kill for record in records for kill in record["result"]["kills"]]
    return Counter(
        next((place for place, name in PLACES.items() if name in kill), "elsewhere")
        for kill in kills
    )


def main() -> int:
    """Run chains until there are kills enough; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # no pool of threads, which a fork would break
    with tempfile.TemporaryDirectory(prefix="convsim-kills-") as root:
        records = soak(options.victims, options.kills, options.out, Path(root))
    where = places(records)
    print(f"{where.total()} kills in {len(records)} chains: {dict(where)}")
    different = [r["configuration"] for r in records if r["result"]["differs"]]
    print(f"different: {different}" if different else "all identical to uninterrupted runs")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
