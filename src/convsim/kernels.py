"""From a model to its kernel banks: which layers count, and each weight as groups of filters.

The only place that knows layer types and weight layouts. Shape suffixes: G groups, M filters
(output channels) of a group, C channels of a filter, k the kernel's spatial shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from convsim.errors import ConvsimError
from convsim.sharding import Share, gather, is_sharded, lay_out_like, local_filters, share_of

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""The layer types; transposed ones have the weight's layout (in, out/groups, k)."""

_CONVOLUTION_CALLS = frozenset(
    getattr(torch, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)
)

LayerFilter = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A name pattern ("layer3.*"), a layer type, or a predicate on (name, module)."""


@dataclass(frozen=True)
class KernelBank:
    """The filters of one convolution, with what else decides their similarity.

    Attributes:
        filters: (G, M, C, k), float64 for float64 weights and float32 for all others. Filters of
            one group share their input; filters of different groups do not.
        stride: One integer per spatial axis.
        dilation: One integer per spatial axis.
        transposed: Whether the layer is a transposed convolution.
        inputs: (G, S, C·n) windows of the layer's real input, for a penalty that asks for them.
        share: Where the layer's other filters are, if these are only this rank's.
    """

    filters: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    inputs: Tensor | None = None
    share: Share | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """How many groups the layer has, and filters each of them, on all ranks together."""
        if self.share is not None:
            return self.share.groups, self.share.filters
        groups, filters = self.filters.shape[:2]
        return groups, filters

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's spatial shape k."""
        return tuple(self.filters.shape[3:])

    def with_filters(self, filters: Tensor) -> KernelBank:
        """Put other filters of the same shape in place of these."""
        # Spelled out, for torch.compile of torch < 2.7 does not trace dataclasses.replace.
        return KernelBank(
            filters, self.stride, self.dilation, self.transposed, self.inputs, self.share
        )

    def to_weight(self, filters: Tensor) -> Tensor:
        """Lay a (G, M, C, k) tensor out as the layer's weight, the inverse of `kernel_bank`."""
        return (filters.transpose(1, 2) if self.transposed else filters).flatten(0, 1)


def kernel_bank(
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
) -> KernelBank:
    """See a convolution's weight as groups of filters.

    Args:
        weight: (M_total, C, k) as in ``nn.Conv1d``, ``2d``, ``3d``; with `transposed`,
            (C_total, M, k) as in ``nn.ConvTranspose1d``, ``2d``, ``3d``. Real floating point.
        stride: The layer's stride, one integer or one per spatial axis.
        dilation: The layer's dilation, likewise.
        groups: The layer's groups.
        transposed: Whether the layer is a transposed convolution.

    Returns:
        The bank; its filters are a view of the weight where its dtype allows.

    Raises:
        ConvsimError: For a weight of another rank, type or layout, an empty weight, groups that do
            not divide, or a stride or dilation that is not a positive integer per axis.
    """
    if not isinstance(weight, Tensor):
        raise ConvsimError(f"A weight must be a torch.Tensor; got {type(weight).__name__}.")
    if isinstance(weight, UninitializedParameter):
        raise ConvsimError("The weight is lazy and not initialised: run one forward pass first.")
    if weight.is_nested:
        raise ConvsimError(
            "A weight must be dense; got a nested tensor. Pass its parts one by one."
        )
    shape = tuple(weight.shape)
    if is_sharded(weight):
        raise ConvsimError(
            f"The weight is a DTensor (shape {shape}), and a shard alone would give a wrong "
            "similarity. Pass weight.full_tensor()."
        )
    if not weight.is_floating_point() or weight.is_quantized or weight.layout != torch.strided:
        raise ConvsimError(
            f"A weight must be dense, real and floating point; got dtype {weight.dtype}, layout "
            f"{weight.layout}, shape {shape}. Convert it first, as with weight.float()."
        )
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ConvsimError(
            "A convolution's weight has 3, 4 or 5 axes (filters, channels, then 1 to 3 spatial); "
            f"got {weight.dim()} axes, shape {shape}. For a single filter use weight.unsqueeze(0)."
        )
    if weight.numel() == 0:
        raise ConvsimError(f"A weight must not be empty; got shape {shape}.")
    if not _is_positive(groups) or shape[0] % groups:
        raise ConvsimError(
            f"groups must be a positive integer that divides the weight's first axis; got "
            f"groups={groups!r} for shape {shape}."
        )
    try:
        precise = weight if weight.dtype == torch.float64 else weight.float()
    except NotImplementedError as error:  # packed 4-bit numbers
        raise ConvsimError(f"torch cannot read numbers of dtype {weight.dtype}.") from error
    filters = precise.unflatten(0, (groups, -1))
    return KernelBank(
        filters=filters.transpose(1, 2) if transposed else filters,
        stride=_per_axis("stride", stride, dims),
        dilation=_per_axis("dilation", dilation, dims),
        transposed=transposed,
    )


def _per_axis(option: str, value: Any, dims: int) -> tuple[int, ...]:
    one = isinstance(value, Tensor) or not isinstance(value, Iterable)
    values: tuple[int, ...] = (value,) * dims if one else tuple(value)
    if len(values) != dims or not all(map(_is_positive, values)):
        raise ConvsimError(
            f"{option} must be a positive integer, or one for each of the {dims} spatial axes; "
            f"got {value!r}."
        )
    return values


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of a model, by its name there."""

    name: str
    module: nn.Module

    @property
    def parametrized(self) -> bool:
        """Whether the weight that convolves is computed from other parameters."""
        return _recomputes_weight(self.module) or parametrize.is_parametrized(self.module, "weight")

    def parameters(self) -> list[nn.Parameter]:
        """List the weight's parameter, or those that it is computed from."""
        return [
            parameter
            for name, parameter in self.module.named_parameters()
            if not name.startswith(("bias", "parametrizations.bias"))
        ]

    def weight(self) -> Tensor:
        """Read the weight that convolves: through a parametrization, or as forward makes it.

        One that is sharded over processes (a DTensor, as under FSDP2) is gathered, on all of them;
        gradients go back to the shards.

        Raises:
            ConvsimError: If it cannot be read, as where FSDP1 keeps it in a flat shard.
        """
        return self.read()[0]

    def read(self, *, shares: bool = False, average: bool = False) -> tuple[Tensor, Share | None]:
        """Read the weight, or with `shares` only this rank's filters and where the others are.

        Shares exist where a weight is sharded between whole filters, and groups; any other is read
        as by `weight`. Gradients of a gathered one must be the same on all ranks, or with `average`
        become their mean.
        """
        module: Any = self.module
        weight = self._own_weight(average)
        if not is_sharded(weight):
            return weight, None
        by_filters = shares and not module.transposed  # its first axis is input channels
        share = share_of(weight, module.groups) if by_filters else None
        if share is None:
            return gather(weight, average=average), None
        return local_filters(weight, share), share

    def outline(self) -> KernelBank:
        """See the layer's bank without its numbers, on the meta device: nothing is gathered."""
        weight = self._own_weight()
        return self.bank(torch.empty(weight.shape, dtype=weight.dtype, device="meta"))

    def _own_weight(self, average: bool = False) -> Tensor:
        module: Any = self.module
        _refuse_flat_shard(self.name, module)
        apart = self.parametrized and any(map(is_sharded, module.parameters()))
        if _recomputes_weight(module) or apart:
            return _weight_in_forward(self, average)
        weight: Tensor = module.weight
        return weight

    def set_weight(self, weight: Tensor) -> None:
        """Write the weight that convolves, through a parametrization's right inverse.

        Raises:
            ConvsimError: If the layer's forward makes its own weight, or the parametrization has no
                right inverse.
        """
        module: Any = self.module
        if _recomputes_weight(module):
            raise ConvsimError(
                f"Layer {self.name!r} ({type(module).__name__}): its forward makes the weight that "
                "convolves, which cannot be written. Leave the layer out with layers=…."
            )
        if not self.parametrized:
            own = module.weight
            weight = lay_out_like(weight, own) if is_sharded(own) else weight
            with torch.no_grad():
                own.copy_(weight)
            return
        try:
            module.weight = weight.to(module.weight.dtype)
        except (NotImplementedError, RuntimeError) as error:
            raise ConvsimError(
                f"Layer {self.name!r}: its parametrization cannot be assigned to ({error}). Leave "
                "the layer out with layers=…."
            ) from error

    def bank(self, weight: Tensor | None = None, share: Share | None = None) -> KernelBank:
        """See the layer's weight, another of its shape or this rank's share as groups of filters.

        Raises:
            ConvsimError: As `kernel_bank`, with the layer's name.
        """
        module: Any = self.module
        weight = self.weight() if weight is None else weight
        try:
            bank = kernel_bank(
                weight,
                stride=module.stride,
                dilation=module.dilation,
                groups=module.groups if share is None else share.groups_in(weight),
                transposed=module.transposed,
            )
            return replace(bank, share=share)
        except ConvsimError as error:
            raise ConvsimError(f"Layer {self.name!r}: {error}") from error


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
    found = {name: m for name, m in modules.items() if isinstance(m, CONVOLUTIONS)}
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
        _refuse_flat_shard(name, module)
    matches = _as_predicate(layers)
    chosen = {
        name: module
        for name, module in found.items()
        if matches(name, module) and (frozen or _trains(ConvLayer(name, module)))
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


def _refuse_flat_shard(name: str, module: Any) -> None:
    """Refuse a weight that FSDP1 keeps in a flat shard, of which filters cannot be told."""
    weight = module._parameters.get("weight")
    if weight is None:
        flat = "weight" in vars(module) and next(module.parameters(), None) is None
    else:
        whole = weight.dim() == 2 + len(module.kernel_size)
        flat = getattr(weight, "_fsdp_flattened", False) and not whole
    if flat:
        raise ConvsimError(
            f"Layer {name!r}: FullyShardedDataParallel (FSDP1) keeps its weight in a flat shard, "
            "where filters cannot be told apart. Take torch.distributed.fsdp.fully_shard (FSDP2), "
            "or, with use_orig_params=True, call convsim inside "
            "`with FullyShardedDataParallel.summon_full_params(model, with_grads=True):`."
        )


def _refuse_no_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConvsimError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")


def _trains(layer: ConvLayer) -> bool:
    """Whether the weight, or something that it is computed from, requires a gradient."""
    return any(parameter.requires_grad for parameter in layer.parameters())


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that convsim knows."""
    return isinstance(module, CONVOLUTIONS)


def _as_predicate(
    layers: LayerFilter | Iterable[LayerFilter] | None,
) -> Callable[[str, nn.Module], bool]:
    if layers is None:
        return lambda name, module: True
    if isinstance(layers, str):
        return lambda name, module: fnmatchcase(name, layers)
    if isinstance(layers, type):
        return lambda name, module: isinstance(module, layers)
    if callable(layers):
        return layers
    if not isinstance(layers, Iterable):
        raise ConvsimError(
            "Layers are chosen by name patterns, layer types or predicates (name, module); got "
            f"{layers!r}."
        )
    predicates = [_as_predicate(layer) for layer in layers]
    return lambda name, module: any(matches(name, module) for matches in predicates)


def _recomputes_weight(module: nn.Module) -> bool:
    """Whether forward convolves with something else than ``module.weight`` as it stands now."""
    base = next(t for t in type(module).__mro__ if t in CONVOLUTIONS)
    own_forward = any(
        getattr(type(module), method, None) is not getattr(base, method, None)
        for method in ("forward", "_conv_forward")
    )
    hooked = "weight" not in module._parameters and not parametrize.is_parametrized(
        module, "weight"
    )
    # parametrize swaps in a subclass of the layer's type, which inherits forward: not own_forward.
    return own_forward or hooked


class _CapturedWeight(Exception):  # noqa: N818 - it carries a result, it is no error
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class _CaptureWeight(TorchFunctionMode):
    """Stop at the first convolution and hand over the weight it was given."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTION_CALLS:
            raise _CapturedWeight(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def _weight_in_forward(layer: ConvLayer, average: bool = False) -> Tensor:
    """Run the layer's own forward as far as its convolution, as weight standardisation needs.

    Parameters that are sharded are gathered for it.
    """
    module: Any = layer.module
    if hasattr(module, "set_reshard_after_backward"):  # FSDP2 would begin a forward pass
        raise ConvsimError(
            f"Layer {layer.name!r} ({type(module).__name__}) computes its weight from others, and "
            "fully_shard is applied to the layer itself: apply it to the module around it instead."
        )
    gathered = {
        name: gather(parameter, average=average)
        for name, parameter in module.named_parameters()
        if is_sharded(parameter)
    }
    reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    like = next(module.parameters())
    probe = torch.zeros(1, module.in_channels, *reach, dtype=like.dtype, device=like.device)
    try:
        with _CaptureWeight():
            torch.func.functional_call(module, gathered, (probe,))
    except _CapturedWeight as captured:
        return captured.weight
    raise ConvsimError(
        f"Layer {layer.name!r} ({type(module).__name__}): its forward calls no torch convolution, "
        "so the weight that convolves cannot be read. Leave the layer out with layers=…."
    )
