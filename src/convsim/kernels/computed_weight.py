"""The weight that convolves, where a layer computes it: read from a copy that is thrown away.

A parametrization, a hook or the layer's own forward may make it, and change something as they do:
spectral norm takes a step, an observer counts, a quantizer sets its range by the first batch. So
they run on a copy of the layer in eval mode, whose parameters are differentiable copies of the
layer's.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from convsim.errors import ConvsimError
from convsim.kernels.convolutions import CONVOLUTIONS
from convsim.kernels.sharding import gather, is_sharded

CONVOLUTION_CALLS = frozenset(
    getattr(torch, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)
)
_DATA = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]


class ConvolvedWeight(NamedTuple):
    """What a layer convolves with.

    Attributes:
        weight: ``module.weight`` itself if it convolves unchanged.
        is_own: Whether ``module.weight`` gives the same, as a parameter or by its parametrization:
            writing that one then changes this.
    """

    weight: Tensor
    is_own: bool


def may_compute_weight(module: nn.Module) -> bool:
    """Tell whether a layer may convolve with something other than its parameter ``weight``."""
    return "weight" not in module._parameters or _has_own_forward(module)


def _has_own_forward(module: nn.Module) -> bool:
    # parametrize swaps in a subclass of the layer's type, which inherits forward.
    base = next(kind for kind in type(module).__mro__ if kind in CONVOLUTIONS)
    wrapped = {"forward": "_old_forward"}  # by accelerate, to move weights and inputs
    return any(
        getattr(own, "__func__", own) is not getattr(base, method, None)
        for method in ("forward", "_conv_forward")
        for own in [getattr(module, wrapped.get(method, method), getattr(module, method, None))]
    )


def convolved_weight(name: str, module: Any) -> ConvolvedWeight:
    """Read what a layer convolves with, without any effect on the layer or on random numbers.

    Parameters that are sharded are gathered for it.

    Raises:
        ConvsimError: If the layer cannot be copied or run, or does not convolve with a weight of
            its own; names it.
    """
    if hasattr(module, "set_reshard_after_backward"):  # which FSDP2 does not let copy
        raise ConvsimError(
            f"Layer {name!r} ({type(module).__name__}) computes its weight from others, and "
            "fully_shard is applied to the layer itself: apply it to the module around it instead."
        )
    recorded = torch.is_grad_enabled()
    try:
        with torch.inference_mode(False), torch.enable_grad(), _random_numbers_kept(module):
            found = _read_from_copy(module)
    except Exception as error:  # whatever a stranger's code raises
        reason = str(error) if isinstance(error, ConvsimError) else _describe(error)
        raise ConvsimError(
            f"Layer {name!r} ({type(module).__name__}): the weight that convolves cannot be read: "
            f"{reason}. Leave the layer out with layers=…, or make its weight with "
            "torch.nn.utils.parametrize, so that its forward need not run."
        ) from error
    trains = recorded and any(parameter.requires_grad for parameter in module.parameters())
    own = found.weight is module._parameters.get("weight")
    return found if own or trains else found._replace(weight=found.weight.detach())


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


@contextmanager
def _random_numbers_kept(module: nn.Module) -> Iterator[None]:
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    capturing = bool(devices) and torch.cuda.is_current_stream_capturing()
    with torch.random.fork_rng([] if capturing else [*devices]):
        yield


def _read_from_copy(module: Any) -> ConvolvedWeight:
    stand_ins = {parameter: _stand_in(parameter) for parameter in module.parameters()}
    is_parametrized = parametrize.is_parametrized(module, "weight")
    if is_parametrized and not _has_own_forward(module):
        return ConvolvedWeight(_copy(module.parametrizations.weight, stand_ins)(), True)
    twin: Any = _copy(module, stand_ins)
    if not is_parametrized and "weight" not in module._parameters:
        _run_hooks_before_forward(module, twin)  # as old weight and spectral norms have
    if not _has_own_forward(module):
        return ConvolvedWeight(twin.weight, False)
    weight, uses_data = _captured_in_forward(twin)
    own = stand_ins.get(module._parameters.get("weight"))
    if weight is own and not uses_data and not own._version:
        return ConvolvedWeight(module.weight, True)
    is_own = weight is own or (is_parametrized and weight.equal(twin.parametrizations.weight()))
    return ConvolvedWeight(weight, is_own)


def _run_hooks_before_forward(module: nn.Module, twin: nn.Module) -> None:
    for key, hook in module._forward_pre_hooks.items():
        takes_keywords = key in module._forward_pre_hooks_with_kwargs
        hook(twin, (_probe(twin),), *([{}] if takes_keywords else []))


def _stand_in(parameter: nn.Parameter) -> Tensor:
    """Copy a parameter. Gradients go on to it; those of a frozen one end at the copy."""
    whole = gather(parameter) if is_sharded(parameter) else parameter
    own = whole.clone()
    # Every copy requires a gradient: that marks whatever depends on a parameter, frozen or not.
    return own if own.requires_grad or not own.is_floating_point() else own.requires_grad_()


def _copy(module: nn.Module, stand_ins: dict[nn.Parameter, Tensor]) -> nn.Module:
    """Copy a module and what it holds, without hooks, in eval mode.

    The mode is set directly: ``eval()`` may do more, as LoRA's merges weights.
    """
    memo: dict[int, Any] = {id(parameter): own for parameter, own in stand_ins.items()}
    for part in module.modules():
        for key, value in vars(part).items():
            if isinstance(value, dict) and "_hooks" in key:
                memo[id(value)] = OrderedDict()
        if "_hf_hook" in vars(part):  # accelerate's, with all offloaded weights of the model
            memo[id(part._hf_hook)] = object()
    with _CopyTensors():
        twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        part.training = False
    return twin


class _CopyTensors(TorchFunctionMode):
    """Copy tensors inside a graph too, which torch refuses: a layer may keep its last outputs."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _probe(module: Any) -> Tensor:
    """Make an input of zeros, large enough for the kernel and for any of its padding modes."""
    reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    if not module.transposed:
        flat = module._reversed_padding_repeated_twice  # from the last axis to the first
        reach = [r + p for r, p in zip(reach, flat[::-2], strict=True)]
    like = next(p for p in module.parameters() if p.is_floating_point())
    return torch.zeros(1, module.in_channels, *reach, dtype=like.dtype, device=like.device)


def _captured_in_forward(twin: Any) -> tuple[Tensor, bool]:
    """Run a copy's forward up to its own convolution; return the weight, and if `.data` was used.

    Raises:
        ConvsimError: If there is none, or several that could be it.
    """
    capture, probe = _Capture(twin), _probe(twin)
    try:
        with _nothing_cached(), capture:
            getattr(twin, "_old_forward", twin.forward)(probe)
    except _Captured:
        pass
    except Exception as error:
        raise ConvsimError(
            f"its forward, given zeros of shape {tuple(probe.shape)}, raised {_describe(error)}"
        ) from error
    finally:
        # Bound to the copy: a reference cycle, which would keep it alive.
        for bound in ("forward", "_old_forward"):
            vars(twin).pop(bound, None)
    return capture.weight(), capture.uses_data


@contextmanager
def _nothing_cached() -> Iterator[None]:
    """Keep parametrize.cached() from taking a copy's weight for the layer's."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled


class _Captured(Exception):  # noqa: N818 - nothing went wrong
    pass


class _Capture(TorchFunctionMode):
    """Note the weights of a module's convolutions, and stop at the first that must be its own.

    That one has the layer's shape and depends on its parameters. Others may come first: a partial
    convolution convolves its mask, a deformable one computes its offsets by another layer.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        own = module._parameters.get("weight")
        self._shape = _declared_shape(module) if own is None else tuple(own.shape)
        self._others = {
            id(parameter)
            for part in module.modules()
            for parameter in part._parameters.values()
            if part is not module
        }
        self._found: list[tuple[tuple[bool, bool], Tensor]] = []
        self.uses_data = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.uses_data |= func in _DATA
        if func in CONVOLUTION_CALLS:
            weight: Tensor = kwargs["weight"] if "weight" in kwargs else args[1]
            if id(weight) not in self._others:
                signs = weight.requires_grad, tuple(weight.shape) == self._shape
                self._found.append((signs, weight))
                if all(signs):
                    raise _Captured
        return func(*args, **kwargs)

    def weight(self) -> Tensor:
        """Return the weight that has most signs of being the layer's own."""
        best = max((signs for signs, _ in self._found), default=(False, False))
        weights = {id(weight): weight for signs, weight in self._found if signs == best}
        if not any(best):
            raise ConvsimError("it calls no torch convolution with a weight of its own")
        if len(weights) > 1:
            shapes = ", ".join(str(tuple(weight.shape)) for weight in weights.values())
            raise ConvsimError(
                f"it convolves with several, of shapes {shapes}, and none has the layer's shape "
                f"{self._shape} and depends on its parameters"
            )
        return next(iter(weights.values()))


def _declared_shape(module: Any) -> tuple[int, ...]:
    channels = (module.out_channels, module.in_channels)
    first, second = channels[::-1] if module.transposed else channels
    return (first, second // module.groups, *module.kernel_size)
