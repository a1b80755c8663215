"""Which layers of a model count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from convsim.errors import ConvsimError, did_you_mean
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
        ConvsimError: If nothing is selected, a pattern or type matches nothing, or a layer is lazy
            and not yet initialised.
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
        if isinstance(module._parameters.get("weight"), UninitializedParameter):
            raise ConvsimError(
                f"Layer {name!r} ({type(module).__name__}) is lazy and not initialised: run one "
                "forward pass first."
            )
        refuse_flat_shard(name, module)
    chosen = {
        name: module
        for name, module in _selected(found, layers, "layers").items()
        if frozen or ConvLayer(name, module).trains
    }
    if not chosen:
        names = ", ".join(map(repr, found))
        if not frozen and _selected(found, layers, "layers"):
            raise ConvsimError(
                "Every convolution that is selected is frozen, so nothing can be trained: call "
                f"requires_grad_(True) on some. The model's convolutions: {names}."
            )
        raise ConvsimError(
            f"No convolution is selected by layers={layers!r}. The model's convolutions: {names}."
        )
    seen: set[frozenset[int]] = set()
    distinct = []
    for name, module in chosen.items():
        key = _identity_of_weight(module)
        if key not in seen:
            seen.add(key)
            distinct.append(ConvLayer(name, module))
    return distinct


def _identity_of_weight(module: nn.Module) -> frozenset[int]:
    """Tell weights apart by their parameter, or by those that they are computed from."""
    made_of = {name: one for name, one in module._parameters.items() if name != "bias"}
    if parametrize.is_parametrized(module, "weight"):
        parametrized: Any = module
        made_of = dict(parametrized.parametrizations.weight.named_parameters())
    own = made_of.get("weight")
    ids = [id(one) for one in ([own] if own is not None else made_of.values())]
    return frozenset(ids or [id(module)])


def selected_modules(
    model: nn.Module,
    modules: LayerFilter | Iterable[LayerFilter] | None,
    option: str = "modules",
) -> list[tuple[str, nn.Module]]:
    """List the modules of a model, of any kind, that a filter like that of `conv_layers` selects.

    Args:
        model: The model.
        modules: The filter.
        option: What its user calls the filter.

    Raises:
        ConvsimError: If nothing is selected, or a pattern or type matches nothing.
    """
    _refuse_no_module(model)
    chosen = _selected(dict(model.named_modules()), modules, option)
    if not chosen:
        raise ConvsimError(
            f"No module is selected by {option}={modules!r}; model.named_modules() lists the names."
        )
    return list(chosen.items())


def _refuse_no_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConvsimError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")


def _selected(
    modules: Mapping[str, nn.Module],
    filters: LayerFilter | Iterable[LayerFilter] | None,
    option: str,
) -> dict[str, nn.Module]:
    """Take the modules that one filter, or one of several, selects, in their order."""
    if filters is None:
        return dict(modules)
    chosen: set[str] = set()
    for each in _as_list(filters):
        matches = _as_predicate(each)
        matched = {name for name, module in modules.items() if matches(name, module)}
        if not matched and isinstance(each, str | type):
            _refuse_without_match(each, filters, modules, option)
        chosen |= matched
    return {name: module for name, module in modules.items() if name in chosen}


def _as_list(filters: LayerFilter | Iterable[LayerFilter]) -> list[LayerFilter]:
    if isinstance(filters, str) or callable(filters):
        return [filters]
    if not isinstance(filters, Iterable):
        _refuse_filter(filters)
    return list(filters)


def _as_predicate(each: Any) -> Callable[[str, nn.Module], bool]:
    if isinstance(each, str):
        return lambda name, module: fnmatchcase(name, each)
    if isinstance(each, type):
        return lambda name, module: isinstance(module, each)
    if not callable(each) or isinstance(each, nn.Module):
        _refuse_filter(each)
    predicate: Callable[[str, nn.Module], bool] = each
    return predicate


def _refuse_filter(given: object) -> NoReturn:
    raise ConvsimError(
        "Layers are chosen by name patterns, layer types or predicates (name, module); got "
        f"{given!r}."
    )


def _refuse_without_match(
    each: str | type, filters: object, modules: Mapping[str, nn.Module], option: str
) -> NoReturn:
    kind, known = "module", "model.named_modules() lists the names"
    if all(map(is_convolution, modules.values())):
        kind = "convolution"
        known = "The model's convolutions: " + ", ".join(map(repr, modules))
    given = f"{each!r} in " if each is not filters else ""
    close = ""
    if isinstance(each, str):
        above = {name.rpartition(".")[0] for name in modules} - {""}
        close = did_you_mean(each, [*modules, *(f"{name}.*" for name in sorted(above))])
    raise ConvsimError(f"No {kind} is selected by {given}{option}={filters!r}. {known}.{close}")
