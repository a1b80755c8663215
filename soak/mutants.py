"""Mutation testing of the core: change one operator or constant, and see a fast test fail.

    python soak/mutants.py [--count 150] [--seed 0]

Draws mutants of each file, in proportion to how many it has, and runs each against the fast tests
that concern it, in a fork of a process that has torch loaded. Stops at any time and goes on at the
next call: what `results/mutants.jsonl` holds for a file as it stands is not run again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import hypothesis  # noqa: F401 - what the tests load is loaded once, before the forks
import lightning  # noqa: F401
import numpy  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torchmetrics  # noqa: F401
from record import Record

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
_PENALTIES = [
    "penalties/test_rivals.py",
    "penalties/test_map_similarity.py",
    "penalties/test_decov.py",
]
_SIMILARITY = [
    "similarity/test_convolutional.py",
    "test_numbers.py",
    "regularizer/test_regularizer.py",
]
_MODEL = [
    "regularizer/test_regularizer.py",
    "regularizer/test_forward_hooks.py",
    "regularizer/test_optimizer_hooks.py",
    "regularizer/test_samples.py",
    "regularizer/test_sampling.py",
    *_PENALTIES,
    "test_numbers.py",
]
TESTS = {
    "similarity": _SIMILARITY,
    "kernels": [
        "kernels/test_kernels.py",
        "kernels/test_windows.py",
        "kernels/test_computed_weight.py",
        "regularizer/test_regularizer.py",
        "similarity/test_convolutional.py",
        "test_numbers.py",
    ],
    "regularizer": _MODEL,
    "penalties": [*_PENALTIES, "test_numbers.py", "regularizer/test_regularizer.py"],
}
SLOW = " or ".join(
    ["compile", "training_with_it", "timm", "large_layers", "adversary", "certificate",
     "both_ways", "finite_differences"]
)  # fmt: skip
SECONDS = 240

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.USub: ast.UAdd,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Make every mutant of a module: what was changed, and the changed source."""
    tree = ast.parse(source)
    skipped = set(map(id, _not_run(tree)))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for field, changed in _changes(node):
            original = getattr(node, field)
            setattr(node, field, changed)
            place = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
            described = f"{place}: {ast.unparse(node).splitlines()[0][:100]}"
            yield described, ast.unparse(ast.fix_missing_locations(deepcopy(tree)))
            setattr(node, field, original)


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    operator = getattr(node, "op", None)
    if type(operator) in _SWAPS:
        yield "op", _SWAPS[type(operator)]()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "operand", ast.UnaryOp(ast.Not(), node.operand)
    if isinstance(node, ast.Compare):
        for i, own in enumerate(node.ops):
            yield "ops", [*node.ops[:i], _SWAPS[type(own)](), *node.ops[i + 1 :]]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "value", not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "value", node.value + 1
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Return) and node.value is not None:
        yield "value", ast.Constant(None)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "value", ast.Constant(None)  # the call is left out


def _not_run(tree: ast.AST) -> Iterator[ast.AST]:
    """List annotations, texts of errors and reprs, and assertions: zip's ``strict=True``."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if (found := getattr(node, field, None)) is not None:
                yield from ast.walk(found)
        is_text = isinstance(node, ast.JoinedStr)
        is_text |= isinstance(node, ast.keyword) and node.arg == "strict"
        is_alias = isinstance(node, ast.Assign) and "Literal" in ast.unparse(node.value)
        is_alias |= isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LayerFilter"
        if is_text or is_alias:
            yield from ast.walk(node)


def survives(path: Path, changed: str, tests: list[str]) -> tuple[str, str]:
    """Run tests on a changed module, in a fork.

    Returns:
        "killed", "survived" or "timeout", and the test that failed, "" if it failed in collection.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy, killer = Path(scratch) / "src", Path(scratch) / "killer"
        shutil.copytree(SOURCE, copy)  # with what is compiled already
        (copy / path.relative_to(SOURCE)).write_text(changed)
        child = os.fork()
        if child == 0:
            os._exit(_tests_pass(copy, tests, killer))
        started = time.monotonic()
        while time.monotonic() - started < SECONDS:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                by = killer.read_text() if killer.exists() else ""
                return ("survived" if status == 0 else "killed"), by
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout", ""


class _Killer:
    """Write down the first test that fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)


def _tests_pass(source: Path, tests: list[str], killer: Path) -> int:
    sys.path.insert(0, str(source))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:doctest", "-k", f"not ({SLOW})"]
    try:
        paths = [str(ROOT / "tests" / test) for test in dict.fromkeys(tests)]
        config = ["-c", os.devnull, "--rootdir", str(ROOT)]
        return int(pytest.main([*options, *config, *paths], plugins=[_Killer(killer)]))
    except BaseException:  # whatever a mutant does to pytest itself
        return 1


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:12]


def main() -> None:
    """Draw the mutants, run those that the record lacks, and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run those not killed again")
    arguments = parser.parse_args()
    record = Record("mutants")
    drawn = []
    for name, tests in TESTS.items():
        place = SOURCE / "convsim" / name
        for path in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest = _digest(path)
            relative = str(path.relative_to(SOURCE))
            drawn += [(relative, digest, *one, tests) for one in mutants(path.read_text())]
    total = len(drawn)
    drawn = random.Random(arguments.seed).sample(drawn, min(arguments.count, total))
    results: Counter[str] = Counter()
    for name, tests in TESTS.items():  # which must pass while nothing is changed
        path = SOURCE / "convsim/errors.py"
        digest = _digest(*(ROOT / "tests").rglob("*.py"), *(SOURCE / "convsim").rglob("*.py"))
        if record.find(unchanged=name, digest=digest):
            continue
        outcome, by = survives(path, path.read_text(), tests)
        if outcome != "survived":
            raise SystemExit(f"The tests of {name} fail as they are: {outcome}, {by}")
        record.add(unchanged=name, digest=digest)
    for file, digest, described, changed, tests in drawn:
        key = {"file": file, "digest": digest, "mutant": described}
        found = record.find(**key)
        if found is None or (arguments.again and found["outcome"] != "killed"):
            outcome, by = survives(SOURCE / file, changed, tests)
            found = record.add(**key, outcome=outcome, by=by)
        results[found["outcome"]] += 1
        if found["outcome"] != "killed":
            print(f"{found['outcome']}: {file}:{described}", flush=True)
    killed = results["killed"] + results["timeout"]
    print(f"{killed} of {sum(results.values())} mutants killed (of {total} that there are)")


if __name__ == "__main__":
    main()
