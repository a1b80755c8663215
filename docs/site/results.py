"""The results page, made from the committed records."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import front
from convsim.lab.presentation import ONE_CLASS
from convsim.lab.records import Record, read_records
from convsim.lab.summary import Summary, reported, summarize
from convsim.lab.tables import markdown_table

ROOT = Path(__file__).parents[2]
ACCURACY = ROOT / "experiments" / "05_accuracy" / "results" / "records.jsonl"
ANSWER = ROOT / "docs" / "site" / "answer.md"
HEAD = ("method", "accuracy, %", "gain, points", "feature-map similarity", "training time")
NAMES = {
    "data-aware": "**data-aware**, on windows; recommended before sampled maps",
    "decov": "DeCov, on all feature maps",
    "maps": "maps, gradient to earlier layers",
    "ocnn": "OCNN",
    "cosine": "cosine orthogonality",
    "crossed": "crossed, kernels alone",
    "crossed-init": "crossed, as initialization",
    "matched": "matched, kernels alone",
    "l2": "weight decay",
    "authors": "authors' regularizer",
    "authors-init": "authors' initialization",
    "authors-both": "authors' regularizer and initialization",
    "recommended-both": "recommended, after initialization",
    "orthoreg": "OrthoReg",
    "soft": "soft orthogonality",
    "double-soft": "double soft orthogonality",
    "srip": "SRIP",
    "coherence": "mutual coherence",
    "adjacent": "adjacent pairs, kernels alone",
}
TIMED = {"none", "data-aware", "decov", "cosine", "crossed", "crossed-init", "matched", "authors",
         "authors-init"}  # fmt: skip
"""Methods whose runs had the machine to themselves, says the experiment's README."""
REPLACED = {"data-aware@auto"}
"""What no longer is what the record says: see experiments/09_automatic."""


def accuracy_table() -> str:
    """Lay out what experiment 05 found for sure: the control, then from the most accurate down."""
    records = reported(read_records(ACCURACY))
    control, *others = (one for one in summarize(records) if one.method not in REPLACED)
    others.sort(key=lambda summary: -summary.accuracy.mean)
    sure = [one for one in others if abs(one.accuracy_gain.mean) > one.accuracy_gain.half_width]
    shown = (control, *sure)
    table = markdown_table(HEAD, [_cells(summary, control) for summary in shown])
    return table + f"\n{ONE_CLASS.strip()}\n" * any(summary.one_class for summary in shown)


def _cells(summary: Summary, control: Summary) -> tuple[str, ...]:
    return (
        NAMES.get(summary.method, summary.method),
        summary.accuracy.text(1, 100, sign=""),
        "" if summary is control else summary.accuracy_gain.text(1, 100).replace("-", "−"),
        f"{summary.similarity.mean:.3f}{' †' * summary.one_class}",
        "" if summary.method not in TIMED else f"{summary.seconds / control.seconds:.2f}",
    )


def results_page() -> str:
    """Put the answer first, then every experiment's tables and figures, and the benchmark's."""
    folders = sorted((ROOT / "experiments").glob("[0-9]*/"))
    answer = "\n\n".join([front.results(), ANSWER.read_text(encoding="utf-8"), accuracy_table()])
    return "\n\n".join([
        _HEAD, "## The answer", answer, _RECORDS, *map(_experiment, folders), _benchmark()
    ]) + "\n"  # fmt: skip


_HEAD = """# Results

Tables are made from the records in the repository when this site is built."""
_RECORDS = """## Experiment by experiment

Each heading leads to the experiment's own page: its hypotheses and rules, written before the run,
and what became of each of them, also where it was refuted."""


def _experiment(folder: Path) -> str:
    here = folder.relative_to(ROOT).as_posix()
    title = (folder / "README.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    results = sorted(
        filter(Path.is_file, (folder / "results").rglob("*.*")),
        key=lambda path: (path.parent, path),
    )
    shown = [
        part
        for parent, own in groupby(results, lambda path: path.parent)
        for part in (f"### {parent.name}" * (parent.name != "results"), *map(_show, own))
    ]
    lines = [r for path in results if path.suffix == ".jsonl" for r in read_records(path)]
    records = [*{record.get("key", number): record for number, record in enumerate(lines)}.values()]
    origin = _origin(records) if shown else "Planned; not run yet."
    return "\n\n".join([f"## [{title}]({here}/README.md)", origin, *filter(None, shown)])


def _show(path: Path) -> str:
    if path.suffix == ".md":
        return re.sub(r"^#.*\n+", "", path.read_text(encoding="utf-8")).strip()
    if path.suffix == ".txt":
        return f"```text\n{path.read_text(encoding='utf-8').rstrip()}\n```"
    return f"![{path.stem}]({path.relative_to(ROOT).as_posix()})" if path.suffix == ".png" else ""


def _origin(records: list[Record]) -> str:
    """Say how many records there are, and by which code, when and on what they were made."""
    if not records:
        return ""
    where: list[dict[str, Any]] = [record["environment"] for record in records]
    commits = dict.fromkeys(str(w["commit"])[:7] for w in where)
    days = dict.fromkeys(f(w["date"][:10] for w in where) for f in (min, max))
    machines = dict.fromkeys(f"{w['cores']} cores of {w['processor']}" for w in where)
    versions = dict.fromkeys(w["torch"] for w in where)
    return (
        f"{len(records)} records; commit {', '.join(commits)}; {' to '.join(days)}; "
        f"{', '.join(machines)}; torch {', '.join(versions)}."
    )


def _benchmark() -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        benchmark = importlib.import_module("penalty_cost")
    finally:
        sys.path.pop(0)
    record = read_records(benchmark.RESULTS)[-1]
    with contextlib.redirect_stdout(io.StringIO()) as tables:
        benchmark.show(record, None)
    listed = re.sub(r"^(?=[^|\n])", "- ", tables.getvalue().strip(), flags=re.MULTILINE)
    return "\n\n".join([
        "## [What it costs](benchmarks/README.md)", _origin([record]), listed,
        "![Time against the number of filters](benchmarks/results/growth.png)",
    ])  # fmt: skip
