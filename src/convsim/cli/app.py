"""The commands. Results go to stdout, messages and progress to stderr.

Exit codes: 0 done, 1 a finding (a threshold exceeded), 2 misuse or bad input, 3 a run failed (a
value that is not finite), 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from convsim.cli.console import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    TERMINATED,
    counter,
    out,
    print_notes,
    progress_bar,
    say,
)
from convsim.cli.measure import measure_command
from convsim.cli.options import Data, Pretrained, Size, SkipBad, TrainImages, with_recipe
from convsim.cli.shrink import shrink_command
from convsim.cli.study import study_command
from convsim.errors import ConvsimError, NonFiniteError, did_you_mean
from convsim.lab.comparison import compare
from convsim.lab.datasets import ImageData
from convsim.lab.doubts import diverged, doubts
from convsim.lab.libraries import check_torchvision
from convsim.lab.loggers import LoggerName
from convsim.lab.methods import parse_method
from convsim.lab.paired import paired_tables
from convsim.lab.presentation import (
    ONE_CLASS,
    SHORT_HEADER,
    SHORT_NOTE,
    details,
    short_rows,
    write_comparison,
)
from convsim.lab.processes import processes
from convsim.lab.records import Record
from convsim.lab.runs import Recipe, Run, Start
from convsim.lab.summary import summarize
from convsim.lab.tables import terminal_table
from convsim.lab.training_data import absolute_source, load_to_train
from convsim.version import __version__
from convsim.visible import visible


class _Commands(TyperGroup):
    """The commands; their errors show a wrong argument as plain text."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _arguments_shown_as_text():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _arguments_shown_as_text():
            return super().invoke(ctx)


@contextmanager
def _arguments_shown_as_text() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # a ClickException, which typer keeps to itself
            error.message = visible(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    cls=_Commands,
    help="Measure and reduce the redundancy of convolutional feature maps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_METHODS = (
    "none, recommended, crossed, authors, decov or another preset "
    "(docs/reference/penalties.md), or NAME-init, NAME-both: as initialization, or as both"
)
MethodName = Annotated[str, typer.Option(help=f"{_METHODS}; NAME@C sets the coefficient.")]
MethodNames = Annotated[
    list[str],
    typer.Option(
        help=f"{_METHODS}; NAME@C sets the coefficient, NAME@C1,C2,… tunes it on "
        "held-out training images. Repeat the option; the first is the control."
    ),
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


app.command("measure")(measure_command)
app.command("shrink")(shrink_command)
app.command("study")(study_command)


@app.command("train")
@with_recipe
def train_command(
    recipe: Recipe,
    data: Data,
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Checkpoint, weights and record.")
    ],
    method: MethodName = "recommended",
    seed: Annotated[int, typer.Option(min=0, help="Seeds weights and image order.")] = 0,
    train_images: TrainImages = None,
    size: Size = None,
    skip_bad: SkipBad = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="Start from a safetensors file or a weights-only checkpoint."),
    ] = None,
    pretrained: Pretrained = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to train.")
    ] = "auto",
    logger: Annotated[
        list[LoggerName] | None,
        typer.Option(help="Log every epoch to OUT, or to Weights & Biases. Repeatable."),
    ] = None,
) -> None:
    """Train one network; the same command again goes on where it was stopped.

    Writes last.ckpt (after every epoch), model.safetensors and record.json to the folder, and
    prints the results as JSON. Under torchrun, processes share every batch and the first writes.
    Exits with 3 if the loss ended far above that of guessing; the files are still written.
    """
    check_torchvision()
    from convsim.lab.checkpoints import save_result  # noqa: PLC0415 - Lightning takes seconds
    from convsim.lab.training import train  # noqa: PLC0415

    chosen = parse_method(method)
    if len(chosen.coefficients) > 1:
        raise ConvsimError(
            f"train takes one coefficient; got {method!r}. convsim compare tunes over several."
        )
    images = load_to_train(data, recipe.model, size=size, augment=recipe.augment, skip_bad=skip_bad)
    run_ = Run(
        chosen, seed, recipe, images.subset(train=train_images, seed=0),
        start=Start(weights, pretrained=pretrained),
    )  # fmt: skip
    first = processes().rank == 0
    if first:
        print_notes(images)
    with progress_bar(shown=first) as progress:
        task = progress.add_task("epochs", total=recipe.epochs)

        def show(epoch: int, _: int, scores: dict[str, float]) -> None:
            text = f"loss {scores['train_loss']:.3f}  accuracy {100 * scores['accuracy']:.1f} %"
            progress.update(task, completed=epoch, description=text)

        network, record = train(run_, folder, show, device=device, loggers=logger or ())
    if not first:
        return
    save_result(network, record | {"source": absolute_source(data)}, folder)
    print(json.dumps(record["result"], indent=1))
    for written in ("model.safetensors", "record.json", "last.ckpt"):
        say(f"wrote {folder / written}")
    for doubt in doubts([record], run_.data):
        say(doubt, head="Warning: ")
    if diverged(record, run_.data):
        raise typer.Exit(FAILED)


@app.command("compare")
@with_recipe
def compare_command(
    recipe: Recipe,
    data: Data,
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Records, checkpoints, table, figure.")
    ],
    method: MethodNames = ["none", "authors", "recommended"],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Seeds for each coefficient.")] = 2,
    tune_lr: Annotated[
        list[float],
        typer.Option(
            min=0, help="A learning rate to try beside --lr for every method. Repeatable."
        ),
    ] = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the runs.")] = 1,
    launcher: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes of this machine, or a Ray cluster (the one at RAY_ADDRESS)."),
    ] = "local",
    train_images: TrainImages = None,
    size: Size = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Also write paired.md: how this method differs from each other one, by seed."
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Whether to write the HTML page.")
    ] = True,
) -> None:
    """Compare methods over seeds: accuracy, epochs to target, feature-map similarity, time.

    Every finished run is appended to OUT/records.jsonl at once; the same command again goes on
    where the grid was stopped. Writes comparison.png, comparison.md and comparison.html.
    """
    methods = [parse_method(name) for name in method]
    if against is not None and against not in (names := [one.name for one in methods]):
        raise ConvsimError(
            f"--against takes one of the methods, {', '.join(names)}; got {against!r}."
            f"{did_you_mean(against, names)}"
        )
    images = load_to_train(data, recipe.model, size=size, augment=recipe.augment)
    print_notes(images)
    images = images.subset(train=train_images, seed=0)
    with progress_bar() as progress:
        task = progress.add_task("runs", total=None)

        def report(run: Run, done: int, total: int) -> None:
            what = f"{run.method.name} {run.method.coefficient or ''} seed {run.seed}"
            progress.update(task, completed=done, total=total, description=what)

        records = compare(
            images, recipe, methods, range(seeds), folder, tuning_seeds=tuning_seeds,
            learning_rates=tune_lr, jobs=jobs, launcher=launcher, report=report,
        )  # fmt: skip
    _tell(records, images, folder, against=against, page=page)


@app.command("demo")
def demo_command(
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Where the results go.")
    ] = Path("demo"),
) -> None:
    """See a network's redundancy, shrink it, train with and without the penalty: two minutes."""
    check_torchvision()
    from convsim.lab.demo import presentation, run_demo, write_demo  # noqa: PLC0415 - Lightning

    with progress_bar() as progress:
        bars = cache(partial(counter, progress))

        def show(what: str, done: int, total: int) -> None:
            bars(what)(done, total)

        demo = run_demo(folder, show)
    paths = write_demo(demo, folder)
    result = presentation.record(demo)["result"]
    out.print(
        terminal_table(
            presentation.HEAD, presentation.rows(result),
            title=presentation.TITLE, note=presentation.note(result),
        )
    )  # fmt: skip
    print(demo.report.verdict)
    for what, path in paths.items():
        say(f"{what}: {path.resolve().as_uri() if path.suffix == '.html' else path}")


def _tell(
    records: Sequence[Record], images: ImageData, folder: Path, *, against: str | None, page: bool
) -> None:
    """Print the results of a comparison, and write the files."""
    summaries = summarize(records)
    found = doubts(records, images)
    text = " ".join([details(records, images.name), *found])
    paths = write_comparison(summaries, images.name, text, folder, page=page)
    out.print(
        terminal_table(
            SHORT_HEADER, short_rows(summaries),
            title=images.name,
            note=SHORT_NOTE + ONE_CLASS * any(one.one_class for one in summaries),
        )
    )  # fmt: skip
    if against is not None:
        paths.append(folder / "paired.md")
        paths[-1].write_text(paired_tables(records, against), encoding="utf-8")
    for path in [folder / "records.jsonl", *paths]:
        say(f"wrote {path}")
    for doubt in found:
        say(doubt, head="Warning: ")


def run() -> None:
    """Run the command line; an expected error becomes one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(message, head="Warning: ")
            app()
    except (ConvsimError, OSError) as error:
        say(error, head="Error: ")
        sys.exit(FAILED if isinstance(error, NonFiniteError) else MISUSED)
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            say("Stopped. What is finished is on disk; to go on from the last epoch, run")
            say(shlex.join(["convsim", *sys.argv[1:]]))
        raise
