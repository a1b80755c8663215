"""The arrows of the house hold, the contracts notice one that does not, and all parts are drawn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from architecture import diagram, layers, parts

ROOT = Path(__file__).parents[2]


def lint(src: Path) -> subprocess.CompletedProcess[str]:
    code = "import importlinter.cli as cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(src)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_arrows_hold():
    done = lint(ROOT / "src")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kernels/bank.py", "from convsim.penalties import presets"),
        ("penalties/base.py", "from convsim.regularizer import Regularizer"),
        ("similarity/convolutional.py", "import numpy"),
    ],
)
def test_an_arrow_that_points_upwards_is_found(tmp_path, module, line):
    shutil.copytree(ROOT / "src" / "convsim", tmp_path / "convsim")
    with (tmp_path / "convsim" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_every_part_has_its_place():
    found = set(parts())
    placed = {part for row in layers() for part in row}
    assert found <= placed, "put a new part into a layer: [tool.importlinter] in pyproject.toml"
    picture = diagram()
    assert all(f"<!-- {part} -->" in picture for part in found)
