"""``convsim study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from convsim.cli.console import out, progress_bar, say
from convsim.lab.files import locked
from convsim.lab.presentation import as_text
from convsim.lab.studies import STUDIES, run_study

Name = Literal["orthogonality", "similarity", "pairs"]


def study_command(
    name: Annotated[Name, typer.Argument(help="Which of the paper's claims to look at.")],
    folder: Annotated[Path, typer.Option("--out", file_okay=False, help="Records, table, figure.")],
    draws: Annotated[
        int | None, typer.Option(min=2, help="Draws of every case; many by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look, in a minute.")] = False,
) -> None:
    """Study claims about kernels and feature maps on random draws.

    orthogonality: does minimising kernel cosine lower feature-map similarity? similarity: does
    minimising Convolutional Similarity, on any input? pairs: are adjacent pairs enough?

    Every finished case is appended to OUT/records.jsonl; run again, the study goes on.
    """
    study = STUDIES[name]
    count = draws or (study.quick if quick else study.draws)
    with locked(folder), progress_bar() as progress:
        task = progress.add_task("cases", total=len(study.cases))
        rows = run_study(study, count, folder, lambda done: progress.update(task, completed=done))
    table = Table(
        title=f"{study.question} {count:,} draws each.",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for heading, _, _ in study.columns:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(as_text, study.cells(row)))
    out.print(table)
    for written in ("records.jsonl", "table.md", "figure.png"):
        say(f"wrote {folder / written}")
