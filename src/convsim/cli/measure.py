"""``convsim measure``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from convsim.cli.console import FOUND, counter, out, print_notes, progress_bar, say
from convsim.cli.options import (
    MODEL,
    OF_A_RUN,
    AnyData,
    BatchSize,
    SkipBad,
    source_of,
    with_subject,
)
from convsim.errors import ConvsimError
from convsim.lab.datasets import ImageData
from convsim.lab.measuring import measure_on
from convsim.lab.subject import Subject
from convsim.redundancy import Place
from convsim.report import RedundancyComparison, RedundancyReport

_MOST_BYTES = 2**30


@with_subject
def measure_command(
    subject: Callable[[str], Subject],
    model: Annotated[str, typer.Argument(help=f"{MODEL} {OF_A_RUN}")],
    data: AnyData = None,
    input_size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            metavar="C H W", help="Instead of data, noise of this shape: a first look at a network."
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=1, help="How many test images to use, class-balanced; all if there are fewer."
        ),
    ] = 256,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = 32,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Only convolutions of this name, such as 'layer3.*'. Repeatable."),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead, modules of any kind of this name, such as '*.bn1'. Repeatable."
        ),
    ] = None,
    place: Annotated[
        Place,
        typer.Option(
            help="Compare maps as they leave their convolution, or where the next layer reads them."
        ),
    ] = "convolution",
    examples: Annotated[int, typer.Option(min=0, help="Images that the page shows maps on.")] = 3,
    autocorrelation: Annotated[
        bool,
        typer.Option(
            "--autocorrelation",
            help="Show how the energy of each layer's inputs is spread over classes; slow.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a self-contained HTML page here.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, allow_dash=True, help="Write the report here; - for stdout, no table."
        ),
    ] = None,
    before: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with the report that --json wrote here; NAME=PATH names it. Repeatable."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also show what the kernels alone say.")
    ] = False,
    max_similarity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if the mean similarity is above this."),
    ] = None,
) -> None:
    """Measure how much a model's feature maps repeat each other on a data set's test images."""
    earlier = _earlier(before or [])
    for path in filter(None, (html, json)):
        path.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made fails now
    chosen = subject(model)
    looked_at: ImageData | tuple[int, int, int]
    part = "test images"
    if input_size is not None:
        if data is not None:
            raise ConvsimError("Give --data, or --input-size for noise, not both.")
        if chosen.preprocess is not None or chosen.size is not None:
            raise ConvsimError("--preprocess and --size are of images: leave out --input-size.")
        network, preprocessing, looked_at = chosen.network(input_size[0]), None, input_size
        count = None
    else:
        whole = chosen.load_data(source_of(chosen, data), skip_bad=skip_bad)
        network, preprocessing = chosen.build(whole)
        looked_at = whole.to_measure(images)
        count = len(looked_at.test_labels)
        if whole.one_part:
            part = "all images" if count == len(whole.test_labels) else "images"
    with progress_bar() as progress:
        report = measure_on(
            network, looked_at, preprocessing=preprocessing, batch_size=batch_size, layers=layers,
            modules=modules, examples=examples, autocorrelation=autocorrelation, place=place,
            part=part, progress=counter(progress, "images", count),
        )  # fmt: skip
    report = replace(report, model=model, weights=chosen.described)
    if isinstance(looked_at, ImageData):
        print_notes(looked_at)
    shown: RedundancyReport | RedundancyComparison = report
    if earlier:
        shown = RedundancyComparison({**earlier, "after": report})
    _show(report, shown, html, json, verbose=verbose)
    if max_similarity is not None:
        _judge(report, max_similarity)


def _show(
    report: RedundancyReport,
    shown: RedundancyReport | RedundancyComparison,
    html: Path | None,
    json: Path | None,
    *,
    verbose: bool,
) -> None:
    """Print the report, or its JSON if asked for, and write the files."""
    if str(json) == "-":
        print(report.to_json())
    else:
        out.print(report.table(verbose=True) if shown is report and verbose else shown)
        if json is not None:
            json.write_text(report.to_json(), encoding="utf-8")
            say(f"wrote {json}")
    if html is not None:
        shown.save_html(html)
        say(f"wrote {html}")


def _judge(report: RedundancyReport, most: float) -> None:
    """Exit with a finding if the model's maps are more alike than allowed, or a layer is dead."""
    if report.silent:
        say(f"All maps are zero in {', '.join(report.silent)}: there is no similarity to judge.")
        raise typer.Exit(FOUND)
    if math.isnan(report.similarity):
        raise ConvsimError(
            "No measured layer has two maps of two pixels or more, so there is no similarity to "
            "compare with --max-similarity. Measure other layers, or larger images with --size."
        )
    if report.similarity <= most:
        return
    defined = [layer for layer in report.layers if not math.isnan(layer.similarity)]
    worst = sorted(defined, key=lambda layer: -layer.similarity)[:3]
    named = ", ".join(f"{layer.name} {layer.similarity:.3f}" for layer in worst)
    say(f"Similarity {report.similarity:.3f} is above {most:g}. The layers most alike: {named}.")
    raise typer.Exit(FOUND)


def _earlier(named: list[str]) -> dict[str, RedundancyReport]:
    """Read reports given as PATH or NAME=PATH; a single one without a name is "before"."""
    found: dict[str, RedundancyReport] = {}
    for text in named:
        given = re.fullmatch(r"([\w -]+)=(.+)", text)
        path = Path(given[2] if given else text)
        name = given[1] if given else "before" if len(named) == 1 else path.stem
        if name in found or name == "after":
            raise ConvsimError(
                f"Every report needs a name of its own, other than after; got {name!r} again. "
                "Name them with --before NAME=PATH."
            )
        found[name] = _read(path)
    return found


def _read(path: Path) -> RedundancyReport:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConvsimError(f"{path}: a report has at most {_MOST_BYTES} bytes. Measure again.")
    try:
        return RedundancyReport.from_json(content)
    except ConvsimError as error:
        raise ConvsimError(f"{path}: {error}") from error
