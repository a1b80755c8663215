"""``convsim shrink``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import TaskID

from convsim.cli.console import out, progress_bar, say
from convsim.cli.options import (
    DATA,
    MODEL,
    Activation,
    BatchSize,
    Classes,
    Entry,
    Norm,
    PrecisionOption,
    Pretrained,
    Size,
    Width,
    chosen_precision,
)
from convsim.errors import ConvsimError
from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.models import build_model
from convsim.lab.shrinking import accuracy_on, shrink_on, train_on_
from convsim.lab.weights import load_weights
from convsim.shrinking import Shrunk


def _share(what: str) -> Any:
    return typer.Option(min=0, max=1, help=f"Share of the {what} to keep. One of the three.")


def shrink_command(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Option(help=DATA)],
    folder: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Weights, plan and report of the result.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Safetensors file or weights-only checkpoint.")
    ] = None,
    entry: Entry = None,
    pretrained: Pretrained = False,
    classes: Classes = None,
    width: Width = None,
    norm: Norm = None,
    activation: Activation = None,
    keep_parameters: Annotated[float | None, _share("parameters")] = None,
    keep_macs: Annotated[float | None, _share("multiplications")] = None,
    keep_channels: Annotated[float | None, _share("channels")] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Of how many training images, class-balanced; at most all.")
    ] = 1000,
    size: Size = None,
    batch_size: BatchSize = 100,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Cut only layers of this name, such as 'layer3.*'. Repeatable."),
    ] = None,
    finetune: Annotated[
        int, typer.Option(min=0, help="Then train this many epochs, with the labels.")
    ] = 0,
    distill: Annotated[
        int,
        typer.Option(min=0, help="Then train this many epochs on the original's outputs, without."),
    ] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of that training.")] = 0.01,
    augment: Annotated[
        bool, typer.Option("--augment", help="Crop and mirror its images at random.")
    ] = False,
    precision: PrecisionOption = "float32",
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a self-contained HTML page here.")
    ] = None,
) -> None:
    """Make a trained network smaller by what is redundant in it: no labels, no training.

    `convsim.load_shrunk` rebuilds the result from the folder. Prints what became of each layer, and
    the accuracy on the data's test images before and after.
    """
    target, share = _target(parameters=keep_parameters, macs=keep_macs, channels=keep_channels)
    dataset = load_dataset(data)
    torch.manual_seed(0)
    network = build_model(
        model, classes=classes or len(dataset.classes), channels=dataset.test_images.shape[1],
        width=width, norm=norm, activation=activation, pretrained=pretrained,
    )  # fmt: skip
    if weights is not None:
        load_weights(network, weights, entry)
    elif not pretrained:
        say("The weights are untrained: give trained ones with --weights.", head="Warning: ")
    arithmetic = chosen_precision(precision) if finetune or distill else "float32"
    with progress_bar() as progress:

        def show(task: TaskID) -> Callable[[int, int], None]:
            return lambda done, total: progress.update(task, completed=done, total=total)

        task = progress.add_task("layers", total=None)
        shrunk = shrink_on(
            network, dataset, images=images, target=target, share=share, size=size,
            batch_size=batch_size, layers=layers, progress=show(task),
        )  # fmt: skip
        scores = {
            "before": accuracy_on(network, dataset, size, batch_size),
            "after": accuracy_on(shrunk.model, dataset, size, batch_size),
        }
        stages = (("distilled", distill, network), ("finetuned", finetune, None))
        for name, epochs, teacher in stages:
            if epochs:
                task = progress.add_task(name, total=None)
                train_on_(
                    shrunk.model, dataset, epochs=epochs, lr=lr, teacher=teacher, size=size,
                    augment=augment, precision=arithmetic, progress=show(task),
                )  # fmt: skip
                scores[name] = accuracy_on(shrunk.model, dataset, size, batch_size)
    _tell(shrunk, dataset, scores, folder, html)


def _target(**shares: float | None) -> tuple[str, float]:
    given = [(name, share) for name, share in shares.items() if share is not None]
    if len(given) != 1:
        raise ConvsimError(
            "Give one of --keep-parameters, --keep-macs and --keep-channels; got "
            f"{' and '.join(f'--keep-{name}' for name, _ in given) or 'none'}."
        )
    return given[0]


def _tell(
    shrunk: Shrunk,
    dataset: ImageData,
    scores: dict[str, float],
    folder: Path,
    html: Path | None,
) -> None:
    """Print what came of it, and write the files."""
    out.print(shrunk.report)
    said = ", ".join(f"{name} {100 * score:.2f} %" for name, score in scores.items())
    print(f"accuracy on {len(dataset.test_labels):,} test images: {said}")
    shrunk.save(folder)
    say(f"wrote {folder}")
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(shrunk.report.to_html(), encoding="utf-8")
        say(f"wrote {html}")
