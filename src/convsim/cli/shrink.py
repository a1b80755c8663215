"""``convsim shrink``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from convsim.cli.console import counter, out, print_notes, progress_bar, say
from convsim.cli.options import (
    MODEL,
    OF_A_RUN,
    AnyData,
    BatchSize,
    PrecisionOption,
    SkipBad,
    chosen_precision,
    source_of,
    with_subject,
)
from convsim.errors import ConvsimError
from convsim.lab.datasets import ImageData
from convsim.lab.preprocessing import Preprocessing
from convsim.lab.shrinking import accuracy_on, shrink_on, train_on_
from convsim.lab.subject import Subject
from convsim.lab.training_data import without_unreadable
from convsim.shrinking import Shrunk


def _share(what: str) -> Any:
    return typer.Option(
        help=f"Share of the {what} to keep, above 0 and at most 1. One of the three."
    )


@with_subject
def shrink_command(
    subject: Callable[[str], Subject],
    model: Annotated[str, typer.Argument(help=f"{MODEL} {OF_A_RUN}")],
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Weights, plan and report of the result.")
    ],
    data: AnyData = None,
    keep_parameters: Annotated[float | None, _share("parameters")] = None,
    keep_macs: Annotated[float | None, _share("multiplications")] = None,
    keep_channels: Annotated[float | None, _share("channels")] = None,
    images: Annotated[
        int,
        typer.Option(
            min=1, help="How many training images to use, class-balanced; all if there are fewer."
        ),
    ] = 1000,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = 100,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Cut only layers of this name, such as 'layer3.*'. Repeatable."),
    ] = None,
    multiple_of: Annotated[
        int, typer.Option(min=1, help="Keep channels in multiples of this; 16 is fast on a CPU.")
    ] = 1,
    finetune: Annotated[
        int, typer.Option(min=0, help="Then train this many epochs, with the labels.")
    ] = 0,
    distill: Annotated[
        int,
        typer.Option(
            min=0, help="Then train this many epochs on the original's outputs, without labels."
        ),
    ] = 0,
    lr: Annotated[
        float, typer.Option(min=0, help="Learning rate of --finetune and --distill.")
    ] = 0.01,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and mirror training images at random.")
    ] = False,
    precision: PrecisionOption = "float32",
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a self-contained HTML page here.")
    ] = None,
) -> None:
    """Make a trained network smaller by taking out what is redundant: no labels, no training.

    `convsim.load_shrunk` rebuilds the result from the folder. Prints what became of each layer, and
    the accuracy on the data's test images before and after.
    """
    target, share = _target(parameters=keep_parameters, macs=keep_macs, channels=keep_channels)
    if (folder / "record.json").exists():
        raise ConvsimError(
            f"{folder} holds a run of convsim train, whose weights would be lost: give another "
            "folder as --out."
        )
    chosen = subject(model)
    source = source_of(chosen, data)
    dataset = without_unreadable(chosen.load_data(source, skip_bad=skip_bad, split=True))
    if finetune:
        dataset.require_classes()
    network, preprocessing = chosen.build(dataset)
    print_notes(dataset)
    if chosen.weights is None and not chosen.pretrained:
        say("The weights are untrained: give trained ones with --weights.", head="Warning: ")
    _say_preprocessing(chosen, preprocessing)
    arithmetic = chosen_precision(precision) if finetune or distill else "float32"
    with progress_bar() as progress:
        shrunk = shrink_on(
            network, dataset, images=images, target=target, share=share,
            preprocessing=preprocessing, batch_size=batch_size, layers=layers,
            multiple_of=multiple_of, progress=counter(progress, "shrink"),
        )  # fmt: skip

        def score(model: nn.Module) -> float:
            if not dataset.labelled:
                return math.nan
            return accuracy_on(model, dataset, batch_size=batch_size, preprocessing=preprocessing)

        scores = {"before": score(network), "after": score(shrunk.model)}
        stages = (("distilled", distill, network), ("finetuned", finetune, None))
        for name, epochs, teacher in stages:
            if epochs:
                train_on_(
                    shrunk.model, dataset, epochs=epochs, lr=lr, teacher=teacher,
                    preprocessing=preprocessing, augment=augment, precision=arithmetic,
                    progress=counter(progress, name),
                )  # fmt: skip
                scores[name] = score(shrunk.model)
    _tell(shrunk, dataset, scores, folder, html)


def _target(**shares: float | None) -> tuple[str, float]:
    given = [(name, share) for name, share in shares.items() if share is not None]
    if len(given) != 1:
        raise ConvsimError(
            "Give one of --keep-parameters, --keep-macs and --keep-channels; got "
            f"{' and '.join(f'--keep-{name}' for name, _ in given) or 'none'}."
        )
    name, share = given[0]
    if not 0 < share <= 1:
        raise ConvsimError(
            f"--keep-{name} is a share above 0 and at most 1; got {share:g}. Half is "
            f"--keep-{name} 0.5."
        )
    return name, share


def _say_preprocessing(subject: Subject, preprocessing: Preprocessing) -> None:
    """Say how images reach the network, and warn where its weights may have seen others."""
    say(f"Images: {preprocessing.description}.")
    if subject.guessed and subject.weights is not None:
        say(
            f"{subject.name} is a network of yours: if it was trained on images prepared "
            "otherwise, give --preprocess package.module:function.",
            head="Warning: ",
        )


def _tell(
    shrunk: Shrunk,
    dataset: ImageData,
    scores: dict[str, float],
    folder: Path,
    html: Path | None,
) -> None:
    """Print the report and the accuracies, and write the files."""
    out.print(shrunk.report)
    said = ", ".join(f"{name} {100 * score:.2f} %" for name, score in scores.items())
    if dataset.labelled and dataset.one_part:
        print(f"accuracy on the {len(dataset.test_labels):,} images there are: {said}")
    elif dataset.labelled:
        print(f"accuracy on {len(dataset.test_labels):,} test images: {said}")
    shrunk.save(folder)
    say(f"wrote {folder}")
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(shrunk.report.to_html(), encoding="utf-8")
        say(f"wrote {html}")
