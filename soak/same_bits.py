"""Train with another commit's code and with this checkout's; list what differs, to the bit.

    python soak/same_bits.py COMMIT

For changes that must change no number, such as moves: short grids on digits, float32, one thread.
Of each run all results but times are compared. It exits with 1 if a result is not the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, Record

GRIDS = (
    "--epochs 3 --seeds 2 --method none --method crossed@1 --method authors@0.001"
    " --method cosine@10 --method authors-init --method crossed-init",
    "--model resnet18 --width 4 --epochs 2 --seeds 1 --method none --method matched@1"
    " --method ocnn@0.01 --method srip@0.01",
    "--optimizer adam --lr 0.001 --epochs 2 --seeds 1 --method none --method orthoreg@1"
    " --method soft@1",
)
CONVSIM = "from convsim.cli import main; main()"


def results(source: Path, grid: str, folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Train a grid with the code in a folder; return method and seed → results."""
    command = [sys.executable, "-c", CONVSIM, "compare", "digits", "--out", folder, *grid.split()]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    found = {}
    for record in map(json.loads, lines):
        c = record["configuration"]
        if c["looks_at_test"]:
            found[c["method"]["name"], c["seed"]] = record["result"]
    return found


def main() -> int:
    """Train, compare, record."""
    (commit,) = sys.argv[1:]
    record = Record("same_bits")
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", other, commit], cwd=ROOT, check=True)
        try:
            for number, grid in enumerate(GRIDS):
                before = results(other / "src", grid, Path(scratch) / f"before-{number}")
                after = results(ROOT / "src", grid, Path(scratch) / f"after-{number}")
                for run in sorted(before.keys() | after.keys()):
                    old, new = before.get(run, {}), after.get(run, {})
                    names = [n for n in sorted({*old, *new}) if "seconds" not in n]
                    differ = [name for name in names if old.get(name) != new.get(name)]
                    differing += bool(differ)
                    record.add(
                        against=commit, grid=grid, method=run[0], seed=run[1],
                        same=[name for name in names if name not in differ], differ=differ,
                    )  # fmt: skip
                    print(f"{number} {run[0]:<14} seed {run[1]}: {differ or 'the same'}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
