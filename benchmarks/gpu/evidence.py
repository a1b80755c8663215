"""Stage: does a penalty pay? CIFAR-10 (JPEG copy), many short runs, resumed where they stopped.

All methods train side by side, each in a lane of its own, on the same seeds: whatever the clock
cuts off, it cuts off for all. Coefficients are tuned on validation images, with as many tries for
every penalty; test images are looked at once a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerator import free
from journal import Journal, read_lines
from photographs import draw, load
from plan import PLAN, REHEARSED, compared
from session import Session, key
from training import Gallery

RECORDS = "runs.jsonl"


def run(journal: Journal, *, rehearse: bool, data: Path, methods: list[str] | None = None) -> None:
    """Train what the records do not hold yet, until the time is up."""
    if rehearse:
        draw(data, train=570, test=20, size=16)
    records = journal.path.with_name(RECORDS)
    earlier = sorted((Path(__file__).parent / "results").glob("runs*.jsonl"))
    known = {} if rehearse else {key(r["run"]): r for path in earlier for r in read_lines(path)}
    known |= {key(record["run"]): record for record in read_lines(records)}
    galleries: list[Gallery] = []

    def read() -> dict[str, Any]:
        photographs = load(data, patience=90)
        galleries.append(Gallery(photographs, journal.device))
        return {"source": photographs.source, "images": len(photographs.labels)}

    journal.attempt("photographs", read, seconds=100, prepares=True)
    if not galleries:
        return
    for number, block in enumerate(REHEARSED if rehearse else PLAN):
        session = Session(journal, galleries[0], block, records, known, data, rehearse)
        name = f"{number}: {block.network}, {block.recipe}"
        journal.attempt(
            name,
            lambda session=session: session.train(methods or compared(rehearse)),
            seconds=journal.left,
            prepares=True,
        )
        session.lanes.clear()
        free(journal.device)
