"""Which layers of a model count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from convsim.errors import ConvsimError
from convsim.kernels.convolutions import is_convolution
from convsim.kernels.layer import ConvLayer, refuse_flat_shard

LayerFilter = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A name pattern ("layer3.*"), a layer type, or a predicate on (name, module)."""


def conv_layers(
    model: nn.Module,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    *,
    frozen: bool = True,
) -> list[ConvLayer]:
    """List the convolutions of a model, each distinct weight once, in the order of its modules.

    Args:
        model: Any module.
        layers: Which of them: a name pattern such as ``"layer3.*"``, a layer type, a predicate
            ``(name, module) -> bool``, or several of these, of which one must match. All if None.
        frozen: Whether to list layers whose weight requires no gradient.

    Raises:
        ConvsimError: If nothing is selected, or a selected layer is lazy and not yet initialised.
    """
    _refuse_no_module(model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found = {name: m for name, m in modules.items() if is_convolution(m)}
    if not found:
        raise ConvsimError(
            f"The model ({type(model).__name__}) has no convolution: convsim acts on Conv1d, "
            "Conv2d, Conv3d, their transposed forms and their subclasses."
        )
    for name, module in found.items():
        if isinstance(getattr(module, "weight", None), UninitializedParameter):
            raise ConvsimError(
                f"Layer {name!r} ({type(module).__name__}) is lazy and not initialised: run one "
                "forward pass first."
            )
        refuse_flat_shard(name, module)
    matches = _as_predicate(layers)
    chosen = {
        name: module
        for name, module in found.items()
        if matches(name, module) and (frozen or ConvLayer(name, module).trains)
    }
    if not chosen:
        raise ConvsimError(
            f"No convolution is selected by layers={layers!r}"
            f"{'' if frozen else ' (frozen ones left out)'}. "
            f"The model's convolutions: {', '.join(map(repr, found))}."
        )
    seen: set[int] = set()
    distinct = []
    for name, module in chosen.items():
        key = id(dict(module.named_parameters(recurse=False)).get("weight", module))
        if key not in seen:
            seen.add(key)
            distinct.append(ConvLayer(name, module))
    return distinct


def selected_modules(
    model: nn.Module, modules: LayerFilter | Iterable[LayerFilter]
) -> list[tuple[str, nn.Module]]:
    """List the modules of a model, of any kind, that a filter like that of `conv_layers` selects.

    Raises:
        ConvsimError: If nothing is selected.
    """
    _refuse_no_module(model)
    matches = _as_predicate(modules)
    chosen = [(name, module) for name, module in model.named_modules() if matches(name, module)]
    if not chosen:
        raise ConvsimError(
            f"No module is selected by modules={modules!r}; model.named_modules() lists the names."
        )
    return chosen


def _refuse_no_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConvsimError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")


def _as_predicate(
    layers: LayerFilter | Iterable[LayerFilter] | None,
) -> Callable[[str, nn.Module], bool]:
    if layers is None:
        return lambda name, module: True
    if isinstance(layers, str):
        return lambda name, module: fnmatchcase(name, layers)
    if isinstance(layers, type):
        return lambda name, module: isinstance(module, layers)
    if callable(layers) and not isinstance(layers, nn.Module):
        return layers
    if not isinstance(layers, Iterable):
        raise ConvsimError(
            "Layers are chosen by name patterns, layer types or predicates (name, module); got "
            f"{layers!r}."
        )
    predicates = [_as_predicate(layer) for layer in layers]
    return lambda name, module: any(matches(name, module) for matches in predicates)
