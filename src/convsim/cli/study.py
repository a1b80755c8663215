"""``convsim study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from convsim.cli.console import counter, out, progress_bar, say
from convsim.lab.files import locked
from convsim.lab.studies import STUDIES, run_study
from convsim.lab.tables import terminal_table

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

    Every finished case is appended to OUT/records.jsonl; the same command again goes on.
    """
    study = STUDIES[name]
    count = draws or (study.quick if quick else study.draws)
    with locked(folder), progress_bar() as progress:
        rows = run_study(study, count, folder, counter(progress, "cases", len(study.cases)))
    table = terminal_table(
        [heading for heading, _, _ in study.columns],
        [study.cells(row) for row in rows],
        title=f"{study.question} {count:,} draws each.",
        note=study.legend,
    )
    out.print(table)
    for written in ("records.jsonl", "table.md", "figure.png"):
        say(f"wrote {folder / written}")
