"""The model-level penalty that a training loop adds to its loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, ConvsimWarning
from convsim.kernels import ConvLayer, KernelBank, LayerFilter, conv_layers
from convsim.kernels.sharding import Share, average_over_ranks_, settle_gradients_, world_size
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.regularizer.coefficient import Coefficient, CoefficientLike
from convsim.regularizer.gradients import add_gradient, fits_in_place, gradient_target
from convsim.regularizer.observations import Observations
from convsim.regularizer.optimizer_hooks import before_every_step


class Regularizer:
    """Add a penalty on a model's convolutions to its training.

    Either of two lines, with the same gradients:

        loss = loss + regularizer()          # a graph like that of any loss
        loss.backward(); regularizer.backward_()   # no graph: less memory and time

    or one, for a loop that you do not want to touch: ``Regularizer(model).attach(optimizer)``.

    The recommended penalty looks at what each layer reads in the forward pass (see
    `ExpectedSimilarity`), so call it after one, in train() mode; "crossed" takes the kernels alone,
    at next to no cost.

    The value is coefficient · mean (or sum, as the penalty says) over the layers. The mean leaves
    out layers that the penalty cannot act on, so they do not dilute it: a single map, or for the
    kernels-only forms one filter per group (value 0), or, for crossed, unit Convolutional
    Similarity, no lag but 0 (1×1 kernels). ``print`` shows which layers are in.

    Args:
        model: The model to train. Its weights are read anew at every call, through any
            parametrization; a weight shared by several layers counts once.
        penalty: "recommended", "crossed", "authors" (as published), a rival's name in
            `convsim.PRESETS`, or a `Penalty`.
        coefficient: The weight of the penalty, a number ≥ 0, or a function of how often `step` has
            been called, which makes a schedule by step or by epoch. The preset's own if None. With
            "auto" the first `backward_` finds it, so that the penalty's gradient is as long as the
            loss' gradient there, clipped if it comes clipped, over the layers that both reach: for
            a loss or a penalty of unknown scale (experiments/09_automatic). What another
            regularizer has added by then counts as the loss'.
        layers: Which convolutions, as in `convsim.conv_layers`: a name pattern, a type, a
            predicate, or several. Layers frozen at this moment are left out.

    Raises:
        ConvsimError: If the model has no convolution, none is selected or trainable, one is lazy,
            or an option is unknown.

    A penalty on feature maps ("maps", "decov") takes those of the forward passes since the last
    call, mean over them, and only the first of the two lines serves it.

    Cost: the penalty's own, with no dependence on batch or image size: for the recommended one see
    `ExpectedSimilarity`; for the kernels-only forms one or two passes over the selected weights.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> regularizer = Regularizer(model)
        >>> loss = model(torch.randn(2, 1, 8, 8)).square().mean() + regularizer()
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: str | Penalty = "recommended",
        *,
        coefficient: CoefficientLike | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        chosen = preset(penalty)
        self.penalty = chosen.penalty
        self.layers = tuple(conv_layers(model, layers, frozen=False))
        self.steps = 0
        self._coefficient = Coefficient(chosen.coefficient if coefficient is None else coefficient)
        with torch.no_grad():
            banks = {layer.name: layer.outline() for layer in self.layers}
        self._acting = [layer for layer in self.layers if self.penalty.acts_on(banks[layer.name])]
        if self._coefficient.automatic:
            self._refuse_auto()
        self._shapes = {name: tuple(bank.filters.shape) for name, bank in banks.items()}
        self._sharded = {layer.name for layer in self.layers if settle_gradients_(layer.module)}
        self._attached = False
        self._leave_optimizer: Callable[[], object] = lambda: None
        self._seen = Observations(model, self._acting, self.penalty)
        if not self._acting:
            warnings.warn(
                f"{self.penalty} cannot act on any of the {len(self.layers)} selected layers: they "
                "have one filter per group or no lag but 0 (as 1×1 kernels): it is 0 with no "
                "gradient. Select other layers, or a form that acts on 1×1 kernels, such as "
                'ConvolutionalSimilarity(channels="matched").',
                ConvsimWarning,
                stacklevel=2,
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Call `backward_` before every step of an optimizer, which serves any loop.

        ``regularizer = Regularizer(model).attach(optimizer)`` is all there is to do. The penalty's
        gradient comes last: after accumulation, the averaging over ranks, a GradScaler's unscaling
        (and not in steps that it skips) and clipping, of which it is no part; where torch's
        optimizers add their weight decay too. ``loss + regularizer()`` then adds no second one. A
        closure given to ``step`` is followed each time it is called, and its loss has the penalty
        added. To have the penalty clipped with the loss, call `backward_` yourself before clipping.

        The optimizer keeps the regularizer until `remove`; attaching it again moves it.

        Args:
            optimizer: The one that steps all of the layers; or what Accelerate, Fabric or Lightning
                wraps it in. With one optimizer for each part of a model, one regularizer each.

        Returns:
            This regularizer.

        Raises:
            ConvsimError: If the optimizer steps none or only some of the layers, or calls no hooks
                (one that is no torch.optim.Optimizer), or the penalty is on feature maps.
        """
        if isinstance(self.penalty, ActivationPenalty):
            raise ConvsimError(
                f"{self.penalty} acts on feature maps and has to enter the loss: use "
                "loss + regularizer() instead of attach()."
            )
        handle = before_every_step(optimizer, self._acting, self._add_gradients)
        self._leave_optimizer()
        self._leave_optimizer = handle.remove
        self._attached = True
        return self

    def remove(self) -> None:
        """Leave the optimizer, and stop looking at the model's forward passes.

        Dropping a regularizer that is not attached does so too.
        """
        self._leave_optimizer()
        self._attached = False
        self._seen.close()

    @property
    def coefficient(self) -> float:
        """The coefficient at this step; with "auto", 0 until it is found."""
        return self._coefficient.at(self.steps)

    def __call__(self) -> Tensor:
        """Compute coefficient · penalty, a differentiable scalar on the first layer's device.

        Attached to an optimizer, which adds the gradient itself, it is detached: to look at.
        """
        if self._coefficient.pending and self._acting:
            raise ConvsimError(
                'coefficient="auto" is found from the gradient of the loss, which loss + '
                "regularizer() does not know. Use loss.backward(); regularizer.backward_()."
            )
        if not self._acting:
            return self._nothing()
        if isinstance(self.penalty, ActivationPenalty):
            maps = [self._seen.take_maps(layer.name) for layer in self._acting]
            values = [torch.stack([*map(self.penalty.maps_value, own)]).mean() for own in maps]
        else:
            apart = bool(self.penalty.windows)  # ranks read other images
            banks = [self._bank(layer, *self._read(layer, apart)) for layer in self._acting]
            values = self.penalty.values(banks)
        value = self._reduced(values) * self.coefficient
        return value.detach() if self._attached else value

    def _read(self, layer: ConvLayer, average: bool = False) -> tuple[Tensor, Share | None]:
        return layer.read(shares=self.penalty.takes_shares, average=average)

    def _bank(self, layer: ConvLayer, weight: Tensor, share: Share | None) -> KernelBank:
        return self._seen.with_inputs(layer.name, layer.bank(weight, share))

    def _reduced(self, values: list[Tensor]) -> Tensor:
        """Put the layers together, without the coefficient."""
        total = torch.stack([value.to(values[0].device) for value in values]).sum()
        return total * self._layer_factor()

    def forget(self) -> None:
        """Drop feature maps that a penalty on them has kept and not used yet."""
        self._seen.forget_maps()

    def backward_(self, scale: float = 1.0) -> Tensor:
        """Add coefficient · scale · gradient of the penalty to the parameters' ``.grad``.

        Call it once per optimizer step: after the last backward of an accumulation, before gradient
        clipping. Parameters that require no gradient are left alone.

        Args:
            scale: What the loss was multiplied by before its backward, as
                ``scaler.get_scale()`` of a GradScaler whose gradients are not yet unscaled.

        Returns:
            coefficient · penalty, detached, as `__call__`; the mean over processes that read other
            images.

        Raises:
            ConvsimError: If the regularizer is attached to an optimizer, or scale is not above 0.
        """
        if self._attached:
            raise ConvsimError(
                "The regularizer is attached to an optimizer, which adds the gradient before each "
                "step: it would count twice. Call values() to look, or remove() first."
            )
        return self._add_gradients(scale)

    def _add_gradients(self, scale: float) -> Tensor:
        if not 0 < scale < math.inf:
            raise ConvsimError(f"scale must be a finite number > 0; got {scale!r}.")
        if not self._acting:
            return self._nothing()
        self._settle_shards()
        with torch.enable_grad():
            weights, shares = zip(*(self._read(layer) for layer in self._acting), strict=True)
        banks = [
            self._bank(layer, weight.detach(), share)
            for layer, weight, share in zip(self._acting, weights, shares, strict=True)
        ]
        over_ranks = bool(self.penalty.windows) and world_size() > 1
        pending = self._coefficient.pending
        in_place = [not (pending or over_ranks) and fits_in_place(weight) for weight in weights]
        gradients = [
            gradient_target(*where)
            for where in zip(self._acting, weights, banks, in_place, strict=True)
        ]
        factor = self._layer_factor() * (1.0 if pending else self.coefficient * scale)
        values = self.penalty.add_gradients_(banks, gradients, factor)
        value = self._reduced(values)
        if over_ranks:
            average_over_ranks_([*(own for own in gradients if own is not None), value])
        if pending:
            self._find_coefficient(banks, gradients, value, scale)
            gradients = [g if g is None else g * (self.coefficient * scale) for g in gradients]
        for weight, bank, gradient, done in zip(weights, banks, gradients, in_place, strict=True):
            if gradient is not None and not done:
                add_gradient(weight, bank, gradient)
        return value * self.coefficient

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=next(self.layers[0].module.parameters()).device)

    def _settle_shards(self) -> None:
        """Make sure that gradients reach the shards that an optimizer holds."""
        for layer in self._acting:
            if settle_gradients_(layer.module):
                self._sharded.add(layer.name)
            elif layer.name in self._sharded:
                raise ConvsimError(
                    f"Layer {layer.name!r} was sharded and is now gathered: a gradient added here "
                    "would not reach the optimizer. Call model.reshard() before "
                    "regularizer.backward_(), or set_reshard_after_backward(True)."
                )

    def _find_coefficient(
        self, banks: list[KernelBank], gradients: list[Tensor | None], value: Tensor, scale: float
    ) -> None:
        """Weigh the penalty by the layers that the loss has reached."""
        weights: list[Any] = [layer.module.weight for layer in self._acting]
        reached = [
            # Not by the penalty's gradient: a rank without filters of a layer has none, and the
            # ranks must ask for the same norms.
            (weight.grad, value.new_zeros(()) if own is None else own, bank)
            for weight, own, bank in zip(weights, gradients, banks, strict=True)
            if weight.requires_grad and weight.grad is not None
        ]
        if reached:
            losses, own, their_banks = zip(*reached, strict=True)
            self._coefficient.find(losses, own, their_banks, value, scale)
        elif any(weight.requires_grad for weight in weights):
            raise ConvsimError(
                'coefficient="auto" needs the gradient of the loss: call loss.backward() before '
                "regularizer.backward_()."
            )

    def _refuse_auto(self) -> None:
        for layer in self._acting:
            if layer.parametrized:
                raise ConvsimError(
                    f'Layer {layer.name!r} computes its weight from others: coefficient="auto" '
                    "cannot read the loss' gradient there. Give a number, or leave the layer out "
                    "with layers=…."
                )
        if isinstance(self.penalty, ActivationPenalty):
            raise ConvsimError(
                f'{self.penalty} acts on feature maps, by loss + regularizer(): coefficient="auto" '
                "needs backward_(). Give a number."
            )

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """Compute each selected layer's penalty, without the coefficient, for logging.

        A layer that the penalty cannot act on has its constant value; 0 if that depends on inputs.
        """
        read = [layer for layer in self.layers if layer in self._acting or not self.penalty.windows]
        values = self.penalty.values([self._bank(layer, *self._read(layer)) for layer in read])
        found = {layer.name: value.item() for layer, value in zip(read, values, strict=True)}
        return {layer.name: found.get(layer.name, 0.0) for layer in self.layers}

    def step(self) -> None:
        """Advance the coefficient's schedule by one: a step or an epoch, as its function counts."""
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: where the schedule stands, and what "auto" found."""
        return {"steps": self.steps, "coefficient": self._coefficient.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ConvsimError: If it is no state of a regularizer.
        """
        steps, found = state.get("steps"), state.get("coefficient")
        if not isinstance(steps, int) or not (found is None or 0 < found < math.inf):
            raise ConvsimError(
                f"This is no state of a regularizer: {state!r}. Give what state_dict() returned."
            )
        self.steps, self._coefficient.found = steps, found

    def __repr__(self) -> str:
        coefficient = "auto" if self._coefficient.pending else f"{self.coefficient:g}"
        return "\n".join(
            [f"Regularizer({self.penalty}, coefficient={coefficient})"]
            + [f"  {_describe(layer, self._shapes[layer.name], layer in self._acting)}"
               for layer in self.layers]
        )  # fmt: skip

    def _layer_factor(self) -> float:
        mean = self.penalty.reduction == "mean"
        return 1 / (max(1, len(self._acting)) if mean else 1)


def _describe(layer: ConvLayer, shape: tuple[int, ...], acting: bool) -> str:
    groups, filters, channels, *kernel = shape
    return (
        f"{layer.name}: {type(layer.module).__name__}, {groups} × {filters} filters of "
        f"{channels} × {'×'.join(map(str, kernel))}{'' if acting else ' (left out: constant)'}"
    )
