"""The weight that convolves, where a layer's own forward computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from convsim.errors import ConvsimError
from convsim.kernels.convolutions import CONVOLUTIONS
from convsim.kernels.sharding import gather, is_sharded

_CONVOLUTION_CALLS = frozenset(
    getattr(torch, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)
)


def recomputes_weight(module: nn.Module) -> bool:
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


def weight_in_forward(name: str, module: Any) -> Tensor:
    """Run the layer's own forward as far as its convolution, as weight standardisation needs.

    Parameters that are sharded are gathered for it.
    """
    if hasattr(module, "set_reshard_after_backward"):  # FSDP2 would begin a forward pass
        raise ConvsimError(
            f"Layer {name!r} ({type(module).__name__}) computes its weight from others, and "
            "fully_shard is applied to the layer itself: apply it to the module around it instead."
        )
    gathered = {
        own: gather(parameter)
        for own, parameter in module.named_parameters()
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
        f"Layer {name!r} ({type(module).__name__}): its forward calls no torch convolution, "
        "so the weight that convolves cannot be read. Leave the layer out with layers=…."
    )


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
