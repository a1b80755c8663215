"""Options that several commands share; those of a recipe, or of a subject, as one parameter."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from convsim.cli.console import say
from convsim.errors import ConvsimError, did_you_mean
from convsim.lab import models
from convsim.lab.arithmetic import Precision, choose_precision
from convsim.lab.runs import Optimizer, Recipe, Schedule
from convsim.lab.subject import Subject

DATA = (
    "digits, photographs, cifar10, cifar100, mnist, fashion-mnist, or the path of images: "
    "a folder ({train,test}/CLASS/*.jpg or CLASS/*.jpg), a tar of one, WebDataset shards "
    "('shards/*-{00..31}.tar'), or what Hugging Face's save_to_disk wrote."
)
MODEL = (
    "cnn, resnet20, resnet18, resnet34, resnet50, vgg19, wrn28-K, torchvision:NAME, "
    "timm:NAME, transformers:NAME, or package.module:factory."
)
OF_A_RUN = "Or the folder of a run of convsim train."
AnyData = Annotated[
    str | None,
    typer.Option(
        help=f"{DATA} Any folder of photographs will do. By default, the data of the run."
    ),
]
Width = Annotated[int | None, typer.Option(min=1, help="Width of the model's first stage.")]
Norm = Annotated[models.Norm | None, typer.Option(help="Normalization.")]
Activation = Annotated[models.Activation | None, typer.Option(help="Activation.")]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Download the library's published weights.")
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1, help="Scale and crop images to this height and width, instead of the network's own."
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out files that cannot be read, and name them.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at once.")]
Data = Annotated[str, typer.Argument(help=DATA)]
TrainImages = Annotated[
    int | None, typer.Option(min=1, help="Use a class-balanced subset of this many images.")
]
PrecisionOption = Annotated[
    Literal["float32", "float32-channels-last", "bf16", "auto"],
    typer.Option(
        help="bf16: products of bfloat16, channels last; auto: the fastest on this hardware, "
        "which is printed."
    ),
]
RECIPE: dict[str, Any] = {
    "model": Annotated[str, typer.Option(help=MODEL)],
    "width": Width,
    "norm": Norm,
    "activation": Activation,
    "epochs": Annotated[int, typer.Option(min=1, help="Passes over the training images.")],
    "batch_size": Annotated[int, typer.Option(min=1, help="Images per step.")],
    "lr": Annotated[float, typer.Option(min=0, help="The learning rate at the start.")],
    "momentum": Annotated[float, typer.Option(min=0, max=1, help="SGD's momentum.")],
    "weight_decay": Annotated[float, typer.Option(min=0, help="The optimizer's weight decay.")],
    "schedule": Annotated[Schedule, typer.Option(help="Learning-rate schedule.")],
    "optimizer": Annotated[Optimizer, typer.Option(help="Optimizer.")],
    "augment": Annotated[
        bool, typer.Option("--augment", help="Crop and mirror training images at random.")
    ],
    "precision": PrecisionOption,
}
"""The fields of a `Recipe` that are options, with the recipe's own defaults."""
SUBJECT: dict[str, Any] = {
    "weights": Annotated[
        Path | None,
        typer.Option(
            help="Safetensors file or weights-only checkpoint. Without one, untrained, seed 0."
        ),
    ],
    "entry": Annotated[
        str | None,
        typer.Option(help="Which of a checkpoint's entries are the weights, as state_dict_ema."),
    ],
    "pretrained": Pretrained,
    "classes": Annotated[
        int | None, typer.Option(min=1, help="Classes of the model's head; as the data's if unset.")
    ],
    "width": Width,
    "norm": Norm,
    "activation": Activation,
    "size": Size,
    "preprocess": Annotated[
        str | None,
        typer.Option(
            help="package.module:function from a PIL image to a tensor, instead of the network's."
        ),
    ],
}
"""The fields of a `Subject` that are options; the model is an argument."""


def _take_options(ctx: typer.Context, path: Path | None) -> Path | None:
    """Read from a file the options that the command line leaves out."""
    if path is None:
        return None
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConvsimError(f"{path} is not TOML ({error}). Write lines such as epochs = 5.") from (
            error
        )
    names = {text.lstrip("-"): one for one in ctx.command.params for text in one.opts}
    known = {name for name in names if name not in ("config", "help", "h")}
    for key in said:
        if key not in known:
            raise ConvsimError(
                f"{path} has {key!r}, which is not an option of {ctx.info_name}."
                f"{did_you_mean(key, known)} convsim {ctx.info_name} --help lists them."
            )
    ctx.default_map = {
        str(names[key].name): [value] if names[key].multiple and isinstance(value, str) else value
        for key, value in said.items()
    }
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", dir_okay=False, exists=True, is_eager=True, callback=_take_options,
        help="Options from a TOML file, such as epochs = 5; those given here come first.",
    ),
]  # fmt: skip


def chosen_precision(asked: Precision | Literal["auto"]) -> Precision:
    """Return the precision that is asked for; for auto, the fastest here, and say which."""
    if asked != "auto":
        return asked
    chosen, reason = choose_precision()
    say(f"precision {chosen}: {reason}")
    return chosen


def source_of(subject: Subject, data: str | None) -> str:
    """Return the data set that is asked for, or else that of the subject's run."""
    source = data or subject.source
    named = "/" in subject.model and ":" not in subject.model
    if source is None and named and not Path(subject.model).is_dir():
        raise ConvsimError(
            f"There is no folder {subject.model!r} of a run. Check the path; or name a network, "
            "and give --data."
        )
    if source is None:
        raise typer.BadParameter("Missing option '--data'.")
    return source


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of the `recipe` that it takes."""

    def recipe(config: Path | None, precision: Any, **fields: Any) -> Recipe:
        return Recipe(precision=chosen_precision(precision), **fields)

    return _with_options(command, {"config": Config, **RECIPE}, Recipe, recipe)


def with_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of a `subject`, which it calls with the model."""

    def subject(**fields: Any) -> Callable[[str], Subject]:
        return partial(Subject, **fields)

    return _with_options(command, SUBJECT, Subject, subject)


def _with_options(
    command: Callable[..., None],
    options: Mapping[str, Any],
    defaults: type,
    make: Callable[..., Any],
) -> Callable[..., None]:
    """Replace the parameter of a command that has `make`'s name by the options it is made of."""

    def run(**given: Any) -> None:
        made = make(**{name: given.pop(name) for name in options})
        command(**{make.__name__: made}, **given)

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != make.__name__
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    own += [
        inspect.Parameter(name, kind, default=getattr(defaults, name, None), annotation=option)
        for name, option in options.items()
    ]
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in own}
    # One line a paragraph, which typer breaks where the terminal ends.
    run.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))
    return run
