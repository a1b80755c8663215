"""What a study is, and running one: every setting's result is appended to a record at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsim.lab.records import (
    Record,
    append_record,
    environment,
    read_records,
    record_key,
    telling_damage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A question, the settings it is asked in, and how one of them is answered.

    Attributes:
        name: What the command line calls it.
        question: One sentence.
        cases: Dataclass instances, each of which decides one row together with the number of draws.
        run: Answers one case with a number of draws.
        columns: (heading, key, format) of the table; keys of the case or of the answer.
        figure: Draws all rows.
        draws: How many draws a case takes; `quick` of them for a first look.
        quick: See `draws`.
    """

    name: str
    question: str
    cases: Sequence[Any]
    run: Callable[[Any, int], Row]
    columns: tuple[tuple[str, str, str], ...]
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
            known[key] = {
                "schema": 1,
                "key": key,
                "configuration": configuration,
                "result": study.run(case, draws),
                "environment": environment(),
            }
            append_record(path, known[key])
        with telling_damage(path):
            rows.append(asdict(case) | known[key]["result"])
            study.cells(rows[-1])
        progress(number)
    head = [heading for heading, _, _ in study.columns]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *map(study.cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (folder / "table.md").write_text(f"{study.question}\n\n{table}\n", encoding="utf-8")
    study.figure(rows).savefig(folder / "figure.png", dpi=120)
    return rows
