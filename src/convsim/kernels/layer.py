"""One convolution of a model: how its weight is read and written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convsim.errors import ConvsimError
from convsim.kernels.bank import KernelBank, kernel_bank
from convsim.kernels.computed_weight import (
    ConvolvedWeight,
    convolved_weight,
    may_compute_weight,
)
from convsim.kernels.sharding import (
    Share,
    gather,
    is_sharded,
    lay_out_like,
    local_filters,
    share_of,
)


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of a model, by its name there."""

    name: str
    module: nn.Module

    @property
    def parametrized(self) -> bool:
        """Whether the weight that convolves is not the parameter ``weight`` itself."""
        own = self.module._parameters.get("weight")
        return own is None or self._own_weight() is not own

    @property
    def trains(self) -> bool:
        """Whether the weight, or anything it is computed from, requires a gradient."""
        own = self.module._parameters.get("weight")
        if own is not None and own.requires_grad:  # spares reading it
            return True
        if not takes_any_gradient(self.module):  # so does this
            return False
        return any(map(takes_gradients, self.parameters()))

    def parameters(self) -> list[nn.Parameter]:
        """List the weight's parameter, or those that it may be computed from."""
        if not self.parametrized:
            weight: Any = self.module.weight
            return [weight]
        return [
            parameter
            for name, parameter in self.module.named_parameters()
            if not name.startswith(("bias", "parametrizations.bias"))
        ]

    def weight(self) -> Tensor:
        """Read the weight that convolves: through a parametrization, or as forward makes it.

        One that is sharded over processes (a DTensor, as under FSDP2) is gathered, on all of them;
        gradients go back to the shards.

        Reading it leaves the layer as it is, whatever its forward or a parametrization does.

        Raises:
            ConvsimError: If it cannot be read, as where FSDP1 keeps it in a flat shard, or where
                it is on the meta device.
        """
        return self.read()[0]

    def read(self, *, shares: bool = False) -> tuple[Tensor, Share | None]:
        """Read the weight; with `shares`, only this rank's filters, and where the others are.

        A weight has shares if it is sharded between whole filters and groups; any other is read as
        `weight` reads it.
        """
        module: Any = self.module
        weight = self._own_weight()
        self._refuse_meta(weight)
        if not is_sharded(weight):
            return weight, None
        by_filters = shares and not module.transposed  # its first axis is input channels
        share = share_of(weight, module.groups) if by_filters else None
        if share is None:
            return gather(weight), None
        return local_filters(weight, share), share

    def outline(self) -> KernelBank:
        """See the layer's bank without its numbers, on the meta device: nothing is gathered."""
        weight = self._own_weight()
        return self.bank(torch.empty(weight.shape, dtype=weight.dtype, device="meta"))

    def _own_weight(self) -> Tensor:
        module: Any = self.module
        refuse_flat_shard(self.name, module)
        weight: Tensor = module.weight if self._is_plain else self._convolved().weight
        return weight

    @property
    def _is_plain(self) -> bool:
        if not may_compute_weight(self.module):
            return True
        # torch.compile can trace a parametrization, but not the copy of a layer.
        compiling = torch.compiler.is_compiling()
        return compiling and parametrize.is_parametrized(self.module, "weight")

    def _convolved(self) -> ConvolvedWeight:
        if torch.compiler.is_compiling():
            apart: Any = torch.compiler.disable(convolved_weight)
            found: ConvolvedWeight = apart(self.name, self.module)
            return found
        return convolved_weight(self.name, self.module)

    def _refuse_meta(self, weight: Tensor) -> None:
        if weight.is_meta:
            raise ConvsimError(
                f"Layer {self.name!r} ({type(self.module).__name__}): its weight is on the meta "
                "device and has no numbers. Load the weights first; if accelerate has offloaded "
                "them, call accelerate.hooks.remove_hook_from_module(model, recurse=True)."
            )

    def set_weight(self, weight: Tensor) -> None:
        """Write the weight that convolves, through a parametrization's right inverse.

        A parametrization, or a forward that constrains its weight, may change it: `bank` reads the
        result.

        Raises:
            ConvsimError: If the layer's forward makes its own weight, or the parametrization has no
                right inverse.
        """
        self.require_writable()
        module: Any = self.module
        own = module._parameters.get("weight")
        if own is not None:
            weight = lay_out_like(weight, own) if is_sharded(own) else weight
            with torch.no_grad():
                own.copy_(weight)
            return
        try:
            module.weight = weight.to(self._convolved().weight.dtype)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ConvsimError(
                f"Layer {self.name!r}: its parametrization cannot be assigned to ({error}). Leave "
                "the layer out with layers=…."
            ) from error

    def require_writable(self) -> None:
        """Refuse a weight that `set_weight` cannot write.

        Raises:
            ConvsimError: As `set_weight`.
        """
        module: Any = self.module
        if may_compute_weight(module) and not self._convolved().is_own:
            raise ConvsimError(
                f"Layer {self.name!r} ({type(module).__name__}): its forward makes the weight that "
                "convolves, which cannot be written. Leave the layer out with layers=…."
            )
        is_parametrized = parametrize.is_parametrized(module, "weight")
        for step in module.parametrizations["weight"] if is_parametrized else ():
            if not hasattr(step, "right_inverse"):
                raise ConvsimError(
                    f"Layer {self.name!r}: its parametrization cannot be assigned to "
                    f"({type(step).__name__} has no right_inverse). Leave the layer out with "
                    "layers=…."
                )

    def bank(self, weight: Tensor | None = None, share: Share | None = None) -> KernelBank:
        """See a weight as groups of filters: the layer's, another of its shape, or a rank's share.

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


def refuse_flat_shard(name: str, module: Any) -> None:
    """Refuse a weight that FSDP1 keeps in a flat shard, where filters cannot be told apart."""
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


def takes_any_gradient(module: nn.Module) -> bool:
    """Tell whether any of a module's parameters is trained."""
    weight = module._parameters.get("weight")
    if weight is not None and weight.requires_grad:  # spares walking through the module
        return True
    return any(map(takes_gradients, module.parameters()))


def takes_gradients(parameter: Tensor) -> bool:
    """Tell whether a parameter, or a tensor that torch.func has put in its place, is trained."""
    return parameter.requires_grad or not isinstance(parameter, nn.Parameter)
