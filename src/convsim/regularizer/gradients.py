"""A kernels-only penalty's gradient on its way: into ``weight.grad``, or apart and added later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import ConvLayer, KernelBank
from convsim.kernels.sharding import Share, is_sharded
from convsim.penalties import Penalty
from convsim.precision import exact_dtype
from convsim.regularizer.coefficient import Coefficient

_NOTHING_LEFT = 1e-5  # of a penalty's value, by which its gradient could lower it: rounding


@dataclass(frozen=True, eq=False)
class _LayerGradient:
    """One layer's gradient: of which weight, and the tensor (G, M, C, k) that it is added to.

    Attributes:
        target: A view of ``weight.grad``, or zeros; None for a weight that requires no gradient.
    """

    weight: Tensor
    bank: KernelBank
    target: Tensor | None
    in_place: bool

    @staticmethod
    def of(layer: ConvLayer, penalty: Penalty, *, apart: bool) -> _LayerGradient:
        with torch.enable_grad():
            weight, share = layer.read(shares=penalty.takes_shares)
        bank = layer.bank(weight.detach(), share)
        in_place = not apart and _fits_in_place(weight)
        if not weight.requires_grad:
            target = None
        elif not in_place:
            target = torch.zeros_like(bank.filters)
        else:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            target = layer.bank(weight.grad).filters
        return _LayerGradient(weight, bank, target, in_place)

    def deliver(self, factor: float) -> None:
        """Add what lies apart to ``weight.grad``, or to the parameters it is computed from."""
        if self.target is None or self.in_place:
            return
        own = self.bank.to_weight(self.target if factor == 1 else self.target * factor)
        if not self.weight.is_leaf:
            self.weight.backward(own.to(self.weight.dtype))
        elif self.weight.grad is None:
            self.weight.grad = own.to(_gradient_dtype(self.weight))
        else:
            self.weight.grad += own.to(self.weight.grad.dtype)


def add_penalty_gradients_(
    layers: Sequence[ConvLayer],
    penalty: Penalty,
    coefficient: Coefficient,
    steps: int,
    layer_factor: float,
    scale: float,
) -> list[Tensor]:
    """Add coefficient · layer factor · scale · gradient of a penalty to the layers' weights.

    A coefficient that is pending is found first, from the gradients that the loss has left.

    Returns:
        Each layer's penalty, detached.
    """
    pending = coefficient.pending
    gradients = [_LayerGradient.of(layer, penalty, apart=pending) for layer in layers]
    factor = layer_factor * (1.0 if pending else coefficient.at(steps) * scale)
    values = penalty.add_gradients_(
        [own.bank for own in gradients],
        [own.target for own in gradients],
        factor,
    )
    if pending:
        modules: list[Any] = [layer.module for layer in layers]
        total = torch.stack([value.to(values[0]) for value in values]).sum() * layer_factor
        _find(coefficient, [module.weight for module in modules], gradients, total, scale)
    for own in gradients:
        own.deliver(coefficient.at(steps) * scale if pending else 1.0)
    return values


def _find(
    coefficient: Coefficient,
    weights: Sequence[Tensor],
    gradients: Sequence[_LayerGradient],
    value: Tensor,
    scale: float,
) -> None:
    """Weigh the penalty by the layers that the loss has reached."""
    # Not by the penalty's gradient: a rank without filters of a layer has none, and the ranks must
    # ask for the same norms.
    reached = [
        (weight.grad, own)
        for weight, own in zip(weights, gradients, strict=True)
        if weight.requires_grad and weight.grad is not None
    ]
    if not reached:
        if any(weight.requires_grad for weight in weights):
            raise ConvsimError(
                'coefficient="auto" needs the gradient of the loss: call loss.backward() before '
                "regularizer.backward_()."
            )
        return
    shares = [own.bank.share for _, own in reached]
    targets = [value.new_zeros(()) if own.target is None else own.target for _, own in reached]
    loss = _norm([grad for grad, _ in reached]).item() / scale
    penalty = _norm(targets, shares).item()
    filters = _norm([own.bank.filters for _, own in reached], shares).item()
    left = penalty * filters > _NOTHING_LEFT * abs(value.item())
    coefficient.find(loss, penalty if left else 0.0)


def _fits_in_place(weight: Tensor) -> bool:
    """Tell whether a gradient can be added to ``weight.grad`` as it is computed."""
    exact = weight.dtype in (torch.float32, torch.float64)
    return weight.is_leaf and exact and _gradient_dtype(weight) == weight.dtype


def _gradient_dtype(weight: Tensor) -> torch.dtype:
    """Read the dtype that a weight's gradient has or shall have."""
    if weight.grad is not None:
        return weight.grad.dtype
    found: torch.dtype = (
        getattr(weight, "grad_dtype", None) if weight.is_leaf else None
    ) or weight.dtype
    return found


def settle_gradients_(module: nn.Module) -> bool:
    """Lay each gradient out as its parameter is, and tell whether any parameter is sharded.

    A gradient that is still to be summed over ranks (Partial) could not take another one.
    """
    found = False
    parameters: Iterable[Any] = module.parameters()
    for parameter in parameters:
        if is_sharded(parameter):
            found = True
            grad, placements = parameter.grad, parameter.placements
            if grad is not None and grad.placements != placements:
                parameter.grad = grad.redistribute(grad.device_mesh, placements)
    return found


def settle_shards_(layers: Iterable[ConvLayer], sharded: set[str]) -> None:
    """Make sure that gradients reach the shards that an optimizer holds.

    Args:
        layers: The layers.
        sharded: The names of those that have been seen sharded, to which more are added.
    """
    for layer in layers:
        if settle_gradients_(layer.module):
            sharded.add(layer.name)
        elif layer.name in sharded:
            raise ConvsimError(
                f"Layer {layer.name!r} was sharded and is now gathered: a gradient added here "
                "would not reach the optimizer. Call model.reshard() before "
                "regularizer.backward_(), or set_reshard_after_backward(True)."
            )


def _norm(tensors: Sequence[Tensor], shares: Sequence[Share | None] | None = None) -> Tensor:
    """Compute the norm of tensors together, each whole, a DTensor, or this rank's share."""
    norms = [
        _norm_of_one(tensor, share)
        for tensor, share in zip(tensors, shares or [None] * len(tensors), strict=True)
    ]
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([own.to(norms[0].device) for own in norms])
    )
    return total


def _norm_of_one(tensor: Tensor, share: Share | None) -> Tensor:
    own: Any = torch.linalg.vector_norm(tensor.detach().to(exact_dtype(tensor.device)))
    if is_sharded(own):
        own = own.full_tensor()
    if share is not None:
        squared = own.square()
        torch.distributed.all_reduce(squared, group=share.process_group)
        own = squared.sqrt()
    return own  # type: ignore[no-any-return]
