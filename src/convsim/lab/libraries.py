"""Models of other libraries, and of the user's own modules, by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from convsim.errors import ConvsimError, DataError, require


def check_torchvision() -> None:
    """Import torchvision where it is installed, as Lightning, timm and transformers do.

    Raises:
        ConvsimError: If it does not fit the torch beside it.
    """
    if find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        raise ConvsimError(
            f"torchvision {version('torchvision')} does not fit torch {version('torch')} "
            f"({type(error).__name__}: {error}), and Lightning, timm and transformers import it. "
            "Install two that fit, pip install --upgrade torch torchvision, or take it away, "
            "pip uninstall torchvision."
        ) from error


def library_model(name: str, classes: int, channels: int, *, pretrained: bool = False) -> nn.Module:
    """Build a model by a name with a colon.

    Args:
        name: "torchvision:NAME", "timm:NAME", "transformers:NAME" (an architecture such as "resnet"
            or "convnext", a folder, or with `pretrained` a name on its hub), or
            "package.module:factory", a function or class of yours, called without arguments; the
            working directory is searched last.
        classes: Number of classes. A factory and a folder have their own.
        channels: Channels of the images. A factory and a folder have their own.
        pretrained: Download the published weights, with the head they come with. Only tensors are
            unpickled.

    Raises:
        ConvsimError: If the library has no such model, the factory fails or makes none, or
            torchvision does not fit torch.
        DataError: If weights cannot be had.
        MissingExtraError: If the library is not installed.
    """
    library, _, their_name = name.partition(":")
    if library not in LIBRARIES:
        if pretrained:
            raise ConvsimError(f"{name!r} is a factory of yours: it loads its own weights.")
        return _from_factory(library, their_name)
    check_torchvision()
    return LIBRARIES[library](their_name, classes, channels, pretrained)


def _torchvision(name: str, classes: int, channels: int, pretrained: bool) -> nn.Module:
    models = require("torchvision.models", "vision")
    if channels != 3:
        raise ConvsimError(
            f"torchvision's models take 3 channels; the images have {channels}. Choose a timm:NAME "
            "model, which takes any number, or one of convsim's own."
        )
    if name not in models.list_models(module=models):
        raise ConvsimError(
            f"torchvision has no classifier {name!r}; see torchvision's models page."
        )
    if not pretrained:
        return cast(nn.Module, models.get_model(name, weights=None, num_classes=classes))
    weights = models.get_model_weights(name).DEFAULT
    model = models.get_model(name, weights=None, num_classes=len(weights.meta["categories"]))
    state = _weights(
        f"torchvision:{name}", lambda: weights.get_state_dict(check_hash=True, weights_only=True)
    )
    model.load_state_dict(state)
    return cast(nn.Module, model)


def _timm(name: str, classes: int, channels: int, pretrained: bool) -> nn.Module:
    timm = require("timm", "vision")
    if not timm.is_model(name):
        raise ConvsimError(f"timm has no model {name!r}; timm.list_models() lists them.")
    if not pretrained:
        model = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
        return cast(nn.Module, model)
    model = _weights(
        f"timm:{name}", lambda: timm.create_model(name, pretrained=True, in_chans=channels)
    )
    return cast(nn.Module, model)


def _transformers(name: str, classes: int, channels: int, pretrained: bool) -> nn.Module:
    transformers = require("transformers", "transformers")
    auto = transformers.AutoModelForImageClassification
    if pretrained or Path(name).is_dir():
        model = _weights(
            f"transformers:{name}",
            lambda: auto.from_pretrained(name, use_safetensors=True, trust_remote_code=False),
        )
        return cast(nn.Module, model)
    if name not in transformers.CONFIG_MAPPING:
        raise ConvsimError(
            f"transformers has no architecture and this folder no model {name!r}. Give one such as "
            "resnet or convnext, or add --pretrained to download a model of that name."
        )
    options = {"num_channels": channels, "num_labels": classes}
    try:
        config = transformers.AutoConfig.for_model(name, **options)
        return cast(nn.Module, auto.from_config(config))
    except (ValueError, AttributeError, TypeError) as error:
        raise ConvsimError(
            f"transformers cannot make an image classifier of {name!r} ({error})."
        ) from error


def _weights(name: str, load: Callable[[], Any]) -> Any:
    return downloaded(f"weights of {name!r}", load, "a file with --weights")


def downloaded(what: str, load: Callable[[], Any], instead: str) -> Any:
    """Return what a library downloads.

    Raises:
        DataError: If that fails; says what, why, and what to give instead.
    """
    try:
        return load()
    except Exception as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise DataError(
            f"The {what} could not be loaded ({type(error).__name__}: {reason[0]}). Check the name "
            f"and the network, or give {instead}."
        ) from error


def imported(module_name: str, what: str) -> ModuleType:
    """Import a module of the user's; the working directory is searched last.

    Args:
        module_name: Its dotted name.
        what: What it should hold, and how to name it, for the error.

    Raises:
        ConvsimError: If it cannot be imported.
    """
    here = os.getcwd()
    sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConvsimError(f"{module_name!r} cannot be imported ({error}). {what}") from error
    finally:
        sys.path.remove(here)


def _from_factory(module_name: str, factory_name: str) -> nn.Module:
    kinds = ", ".join(f"{library}:NAME" for library in LIBRARIES)
    module = imported(
        module_name, f"A model is one of convsim's own, {kinds}, or package.module:factory."
    )
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConvsimError(f"Module {module_name!r} has no function or class {factory_name!r}.")
    try:
        model = factory()
    except TypeError as error:
        raise ConvsimError(
            f"{module_name}:{factory_name} is called without arguments ({error}). Write a function "
            "that calls it with yours."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConvsimError(
            f"{module_name}:{factory_name} must return a torch.nn.Module; it returned a "
            f"{type(model).__name__}."
        )
    return model


LIBRARIES: dict[str, Callable[[str, int, int, bool], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
"""Prefix → builder of (name, classes, channels, pretrained)."""
