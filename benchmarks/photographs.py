"""What it takes to measure many photographs, and to list a million of them.

    python benchmarks/photographs.py              # all; appends to results/photographs.jsonl
    python benchmarks/photographs.py --names      # the list alone, 1.28 million files
    python benchmarks/photographs.py --show       # the last records again

Photographs: noise, sides from 100 to 2,000 pixels (log-uniform), in JPEG, PNG, BMP, WebP, GIF and
TIFF, colour, grey, palette, with alpha, CMYK, 16 bits and EXIF tags; the one in the middle is
damaged. 1,000 are drawn; the 10,000 are ten names for each. `convsim measure timm:test_resnet
--skip-bad` runs on 1,000 and on 10,000 in a process of its own; the peak is of the process with
its workers, each page counted once (PSS), sampled ten times a second. Then it is stopped by
Ctrl-C in the middle. The list: 1,000 class folders of 1,280 names each, hard links to one image a
class; a fresh process loads it.

torchvision and timm must load beside torch, or lie where `make test` puts them.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from convsim.lab.records import append_record, environment

HERE = Path(__file__).parent
RECORDS = HERE / "results" / "photographs.jsonl"
MODEL = "timm:test_resnet"
COUNTS = (1000, 10000)
CLASSES, EACH = 1000, 1280
KINDS = (
    ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("png", "RGBA"), ("png", "I;16"),
    ("bmp", "RGB"), ("webp", "RGB"), ("gif", "P"), ("tif", "RGB"),
)  # fmt: skip
CONVSIM = """
import sys
sys.path.insert(0, {tests!r})
import conftest
conftest.use_vision()
from convsim.cli import main
main()
"""
LIST = """
import resource, sys, time
from convsim.lab.datasets import load_dataset
start = time.perf_counter()
data = load_dataset(sys.argv[1], stream=True, whole=True, progress=False)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(len(data.test_labels), len(data.classes), seconds, peak)
"""


def photograph(chance, mode):
    """Draw noise, as large as a photograph."""
    width, height = (round(100 * 20 ** chance.random()) for _ in range(2))
    generator = np.random.default_rng(chance.getrandbits(32))
    noise = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    return image.quantize(64, Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)


def make_photographs(folder, count):
    """Write photographs, after the first thousand links to these; the one in the middle damaged."""
    for n in range(count):
        if n >= COUNTS[0]:
            suffix, _ = KINDS[n % len(KINDS)]
            path = folder / f"{n // 1000:02}" / f"{n:05}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            os.link(folder / "00" / f"{n % 1000:05}.{suffix}", path)
            continue
        chance = random.Random(n)
        suffix, mode = KINDS[n % len(KINDS)]
        path = folder / f"{n // 1000:02}" / f"{n:05}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        options = {"compress_level": 1} if suffix == "png" else {}
        if suffix == "jpg" and n % 3:
            tag = Image.Exif()
            tag[0x0112] = 1 + n % 8
            options["exif"] = tag
        out = io.BytesIO()
        photograph(chance, mode).save(
            out, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options
        )
        content = out.getvalue()
        path.write_bytes(content)
    middle = next((folder / f"{count // 2000:02}").glob(f"{count // 2:05}.*"))
    cut = middle.read_bytes()[: middle.stat().st_size // 2]
    middle.unlink()  # other names for it stay whole
    middle.write_bytes(cut)


def processes(root):
    """List a process and all that it has started."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def memory(root):
    """Add up the memory of a process and all that it has started, each page once, in bytes."""
    total = 0
    for pid in processes(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * sum(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    return total


def start(folder, images, report):
    """Start the command line on the photographs."""
    code = CONVSIM.format(tests=str(HERE.parent / "tests"))
    command = ["measure", MODEL, "--data", str(folder), "--images", str(images), "--skip-bad"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command, "--json", str(report)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # A shell starts its background jobs, and so what they start, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def measured(folder, images, scratch):
    """Measure photographs; return what it took."""
    report = scratch / f"{images}.json"
    begin, peak = time.perf_counter(), 0
    process = start(folder, images, report)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.1)
    said = process.stderr.read()
    assert process.returncode == 0, said
    content = json.loads(report.read_text())
    return {
        "images": images, "measured": content["images"], "peak": peak,
        "seconds": time.perf_counter() - begin, "similarity": content["similarity"],
        "left_out": [line.strip() for line in said.splitlines() if "left out" in line],
    }  # fmt: skip


def stopped(folder, scratch, after):
    """Stop a measurement in the middle; return how it ended."""
    process = start(folder, COUNTS[-1], scratch / "stopped.json")
    time.sleep(after)
    started = processes(process.pid)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    time.sleep(1)
    return {
        "after": after, "exit": process.returncode, "processes": len(started),
        "left": sum(Path(f"/proc/{pid}").exists() for pid in started),
        "traceback": "Traceback" in said, "report": (scratch / "stopped.json").exists(),
    }  # fmt: skip


def photographs(scratch):
    """Measure 1,000 and 10,000, and stop in the middle."""
    folder = scratch / "photographs"
    folder.mkdir()
    make_photographs(folder, COUNTS[-1])
    few = scratch / "few"
    few.mkdir()
    make_photographs(few, COUNTS[0])
    runs = [measured(few, COUNTS[0], scratch), measured(folder, COUNTS[-1], scratch)]
    record("photographs", {
        "model": MODEL, "runs": runs, "growth": runs[1]["peak"] / runs[0]["peak"] - 1,
        "stopped": stopped(folder, scratch, after=runs[1]["seconds"] / 2),
    })  # fmt: skip


def names(scratch):
    """List 1.28 million files."""
    folder = scratch / "names"
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "jpeg")
    for label in range(CLASSES):
        inside = folder / f"n{label:08}"
        inside.mkdir(parents=True)
        first = inside / f"n{label:08}_{0:05}.JPEG"
        first.write_bytes(content.getvalue())
        for n in range(1, EACH):
            os.link(first, inside / f"n{label:08}_{n:05}.JPEG")
    answer = subprocess.run(
        [sys.executable, "-c", LIST, str(folder)], capture_output=True, text=True, check=True
    )
    files, classes, seconds, peak = map(float, answer.stdout.split())
    record("names", {"files": files, "classes": classes, "seconds": seconds, "peak": peak})


def record(what, result):
    """Keep a result with its environment."""
    append_record(RECORDS, {"what": what, "result": result, "environment": environment()})


def show():
    """Print the last record of each kind."""
    found = {}
    for line in RECORDS.read_text().splitlines() if RECORDS.exists() else ():
        one = json.loads(line)
        found[one["what"]] = one
    for what, one in found.items():
        made, result = one["environment"], one["result"]
        print(f"{what}: commit {made['commit'][:9]}, {made['processor']}, {made['cores']} cores")
        if what == "names":
            print(f"  {result['files']:,.0f} files of {result['classes']:,.0f} classes listed in "
                  f"{result['seconds']:.1f} s, peak {result['peak'] / 2**20:.0f} MiB")  # fmt: skip
            continue
        for run in result["runs"]:
            print(f"  {run['measured']:,} of {run['images']:,} photographs: peak "
                  f"{run['peak'] / 2**20:.0f} MiB, {run['seconds']:.0f} s; "
                  f"{' '.join(run['left_out'])}")  # fmt: skip
        print(f"  growth {100 * result['growth']:+.1f} %; stopped: {result['stopped']}")


def main():
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    every = not (options.names or options.photographs or options.show)
    with tempfile.TemporaryDirectory() as scratch:
        if options.names or every:
            names(Path(scratch))
        if options.photographs or every:
            photographs(Path(scratch))
    show()


if __name__ == "__main__":
    main()
