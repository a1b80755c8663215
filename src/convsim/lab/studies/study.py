"""What a study is, and how one runs: each setting's result is recorded at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsim.lab.records import (
    Record,
    append_record,
    new_record,
    read_records,
    record_key,
    report_damaged_record,
)
from convsim.lab.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A question, the settings it is asked in, and how one of them is answered.

    Attributes:
        name: What the command line calls it.
        question: One sentence.
        cases: Dataclass instances; each, with the number of draws, decides one row.
        run: Answers one case with a number of draws.
        columns: (heading, key, format) of the table; keys of the case or of the answer.
        legend: What the columns say, in sentences.
        figure: Draws all rows.
        draws: How many draws a case takes; `quick` of them for a first look.
        quick: See `draws`.
    """

    name: str
    question: str
    cases: Sequence[Any]
    run: Callable[[Any, int], Row]
    columns: tuple[tuple[str, str, str], ...]
    legend: str
    figure: Callable[[Sequence[Row]], Figure]
    draws: int = 1000
    quick: int = 50

    def cells(self, row: Row) -> tuple[str, ...]:
        """Format a row for a table."""
        return tuple(format(row[key], how) for _, key, how in self.columns)


def run_study(
    study: Study, draws: int, folder: Path, progress: Callable[[int], None] = lambda done: None
) -> list[Row]:
    """Answer every case, resuming from the folder's records.jsonl; write table and figure.

    Args:
        study: The study.
        draws: Draws of every case.
        folder: Where records.jsonl, table.md and figure.png go.
        progress: Called with the number of cases done.

    Returns:
        One row by case: the case and its answer.

    Raises:
        ConvsimError: If a record is damaged.
    """
    path = folder / "records.jsonl"
    known = {record.get("key"): record for record in read_records(path)}
    rows: list[Row] = []
    for number, case in enumerate(study.cases, 1):
        configuration: Record = {"study": study.name, "draws": draws, "case": asdict(case)}
        key = record_key(configuration)
        if key not in known:
            known[key] = new_record(configuration, study.run(case, draws))
            append_record(path, known[key])
        with report_damaged_record(path):
            rows.append(asdict(case) | known[key]["result"])
            study.cells(rows[-1])
        progress(number)
    table = markdown_table([heading for heading, _, _ in study.columns], [*map(study.cells, rows)])
    (folder / "table.md").write_text(
        f"{study.question}\n\n{table}\n{study.legend}\n", encoding="utf-8"
    )
    study.figure(rows).savefig(folder / "figure.png", dpi=120)
    return rows
