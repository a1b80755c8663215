"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

DATA = (
    "digits, cifar10, cifar100, mnist, fashion-mnist, or the path of an ImageFolder directory "
    "({train,test}/CLASS/*.jpg) or a tar of one."
)
MODEL = (
    "cnn, resnet18, resnet34, resnet50, vgg19, wrn28-K, torchvision:NAME, timm:NAME, "
    "transformers:NAME, or package.module:factory."
)
Model = Annotated[str, typer.Option(help=MODEL)]
Width = Annotated[int | None, typer.Option(help="Width of the model's first stage.")]
Norm = Annotated[Literal["batch", "none"] | None, typer.Option(help="Normalization.")]
Activation = Annotated[
    Literal["relu", "elu", "leaky_relu"] | None, typer.Option(help="Activation.")
]
