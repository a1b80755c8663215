"""The networks of the paper and of its code, for small images; other libraries' by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from convsim.errors import ConvsimError, did_you_mean
from convsim.lab.libraries import LIBRARIES, library_model

Norm = Literal["batch", "none"]
Activation = Literal["relu", "elu", "leaky_relu"]

_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}


@dataclass(frozen=True)
class _Style:
    """What every block of a network shares."""

    norm: Norm
    activation: Activation

    def __post_init__(self) -> None:
        for option, kind in (("norm", Norm), ("activation", Activation)):
            value, known = getattr(self, option), get_args(kind)
            if value not in known:
                raise ConvsimError(
                    f"{option} must be one of {', '.join(map(repr, known))}; got {value!r}."
                )

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        """Build a convolution that keeps the size at stride 1, with a bias where no norm is."""
        return nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, bias=self.norm == "none"
        )

    def normalize(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.Identity()

    def activate(self) -> nn.Module:
        # Without a norm in between, in place would overwrite the feature maps that a hook keeps,
        # and the shortcut of a pre-activation block.
        return _ACTIVATIONS[self.activation](inplace=self.norm == "batch")

    def unit(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        """Build convolution, norm, activation."""
        return [
            self.conv(inputs, outputs, kernel, stride),
            self.normalize(outputs),
            self.activate(),
        ]


def build_model(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    width: int | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build an image classifier by name, its weights drawn from torch's global generator.

    Args:
        name: "cnn" (five 3×3 convolutions of width w, w, 2w, 2w, 4w, max-pooled after the second
            and fourth), "resnet20", "resnet18", "resnet34", "resnet50" (He et al. 2015, stem for
            32×32, shortcuts that project), "vgg19" (Simonyan and Zisserman 2014, one linear layer),
            "wrn28-K" (Zagoruyko and Komodakis 2016, widen factor K), or one of another library or
            of yours, as in `convsim.lab.libraries.library_model`.
        classes: Number of classes.
        channels: Channels of the images.
        width: Width of the first stage; by default 16 for "cnn", "resnet20" and "wrn28-K", 64 for
            the others.
        norm: "batch" (default) or "none".
        activation: "relu" (default), "elu" or "leaky_relu".
        pretrained: Download the published weights, with the head they come with.

    Returns:
        A module that maps (N, channels, H, W), from 8×8 on, to logits (N, classes).

    Raises:
        ConvsimError: For an unknown name or option, a size that is not a positive integer, or an
            option that a model of another library does not take.
        MissingExtraError: If that library is not installed.
    """
    _require_sizes(classes=classes, channels=channels, width=width)
    if ":" in name:
        given = {"width": width, "norm": norm, "activation": activation}
        refused = [option for option, value in given.items() if value is not None]
        if refused:
            raise ConvsimError(
                f"{name!r} has a fixed architecture: it takes no {', '.join(refused)}. "
                "Leave that out, or choose one of convsim's own models."
            )
        return library_model(name, classes, channels, pretrained=pretrained)
    if pretrained:
        raise ConvsimError(
            f"convsim publishes no weights for its own model {name!r}. Leave pretrained out, or "
            "choose a model of torchvision, timm or transformers."
        )
    style = _Style("batch" if norm is None else norm, "relu" if activation is None else activation)
    if wide := re.fullmatch(r"wrn28-([1-9]\d*)", name):
        return _wide_resnet28(style, classes, channels, width or 16, int(wide[1]))
    if name.startswith("wrn28"):
        raise ConvsimError(
            f"K in 'wrn28-K' is a number of 1 or more, as in 'wrn28-10'; got {name!r}."
        )
    if name not in MODELS:
        known = [*MODELS, "wrn28-10", *(f"{library}:NAME" for library in LIBRARIES)]
        raise ConvsimError(
            f"Unknown model {name!r}.{did_you_mean(name, known)} The models are "
            f"{', '.join(known)}, one of yours as package.module:factory, or to look at one that "
            "was trained here, the folder of its run."
        )
    default_width, build = MODELS[name]
    return build(style, classes, channels, width or default_width)


def _require_sizes(**sizes: int | None) -> None:
    for option, value in sizes.items():
        # bool is a subclass of int.
        if value is not None and (type(value) is not int or value < 1):
            raise ConvsimError(
                f"{option} must be a positive integer; got {value!r}. Pass an int of 1 or more."
            )


def _shallow_cnn(style: _Style, classes: int, channels: int, width: int) -> nn.Module:
    w = width
    return nn.Sequential(
        *style.unit(channels, w), *style.unit(w, w), nn.MaxPool2d(2),
        *style.unit(w, 2 * w), *style.unit(2 * w, 2 * w), nn.MaxPool2d(2),
        *style.unit(2 * w, 4 * w), *_head(4 * w, classes),
    )  # fmt: skip


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


class _Residual(nn.Module):
    """activation(body(x) + shortcut(x)), the shortcut projecting where the shape changes."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


def _resnet(
    style: _Style,
    classes: int,
    channels: int,
    width: int,
    *,
    blocks: tuple[int, ...],
    bottleneck: bool,
) -> nn.Module:
    layers = style.unit(channels, width)
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            kernels = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1)]
            if not bottleneck:
                kernels = [(inputs, planes, 3, stride), (planes, outputs, 3, 1)]
            body = [module for kernel in kernels for module in style.unit(*kernel)][:-1]
            shortcut = nn.Sequential()
            if stride > 1 or inputs != outputs:
                shortcut = nn.Sequential(*style.unit(inputs, outputs, 1, stride)[:-1])
            layers.append(_Residual(nn.Sequential(*body), shortcut, style.activate()))
            inputs = outputs
    return _kaiming(nn.Sequential(*layers, *_head(inputs, classes)))


def _vgg19(style: _Style, classes: int, channels: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = channels
    for factor, count in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
        for _ in range(count):
            layers += style.unit(inputs, factor * width)
            inputs = factor * width
        # ceil_mode: images smaller than 32×32 still have a pixel left after five halvings.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return _kaiming(nn.Sequential(*layers, *_head(inputs, classes)))


class _PreActivation(nn.Module):
    """body(a) + shortcut, with a = activation(norm(x)); a projecting shortcut starts from a."""

    def __init__(self, first: nn.Module, body: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.first, self.body, self.projection = first, body, projection

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        y: Tensor = self.body(a) + (x if self.projection is None else self.projection(a))
        return y


def _wide_resnet28(style: _Style, classes: int, channels: int, width: int, widen: int) -> nn.Module:
    layers = [style.conv(channels, width, 3)]
    inputs = width
    for stage in range(3):
        outputs = width * widen * 2**stage
        for block in range(4):
            stride = 2 if stage and not block else 1
            projects = stride > 1 or inputs != outputs
            layers.append(
                _PreActivation(
                    nn.Sequential(style.normalize(inputs), style.activate()),
                    nn.Sequential(
                        *style.unit(inputs, outputs, 3, stride), style.conv(outputs, outputs, 3)
                    ),
                    style.conv(inputs, outputs, 1, stride) if projects else None,
                )
            )
            inputs = outputs
    layers += [style.normalize(inputs), style.activate()]
    return _kaiming(nn.Sequential(*layers, *_head(inputs, classes)))


def _kaiming(model: nn.Module) -> nn.Module:
    """Draw the convolutions' weights from N(0, 2 / fan-out) (He et al. 2015), in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return model


def logits_of(output: Any) -> Tensor:
    """Take the logits (N, classes) of what a classifier returns; transformers wraps them."""
    logits: Tensor = getattr(output, "logits", output)
    return logits


MODELS: dict[str, tuple[int, Callable[[_Style, int, int, int], nn.Module]]] = {
    "cnn": (16, _shallow_cnn),
    "resnet20": (16, partial(_resnet, blocks=(3, 3, 3), bottleneck=False)),
    "resnet18": (64, partial(_resnet, blocks=(2, 2, 2, 2), bottleneck=False)),
    "resnet34": (64, partial(_resnet, blocks=(3, 4, 6, 3), bottleneck=False)),
    "resnet50": (64, partial(_resnet, blocks=(3, 4, 6, 3), bottleneck=True)),
    "vgg19": (64, _vgg19),
}
"""Name → default width and builder; "wrn28-K" and other libraries' models beside them."""
