"""The model-level penalty that a training loop adds to its loss."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, ConvsimWarning
from convsim.kernels import ConvLayer, LayerFilter, conv_layers
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.regularizer.attachment import Attachment
from convsim.regularizer.coefficient import Coefficient, CoefficientLike
from convsim.regularizer.description import Description, warn_of_few
from convsim.regularizer.gradients import add_penalty_gradients_, settle_gradients_, settle_shards_
from convsim.regularizer.loss_hooks import add_to_losses
from convsim.regularizer.optimizer_hooks import after_every_step, before_every_step
from convsim.regularizer.samples import Samples, modules_of
from convsim.regularizer.sampling import Balance


class Regularizer:
    """Add a penalty on a model's convolutions to its training.

        loss = loss + regularizer()

    or one line for a loop that you do not want to touch: ``Regularizer(model).attach(criterion)``.

    The recommended penalty looks at the feature maps that the layers put out (see
    `MapSimilarity`), so call it after a forward pass that records gradients; "crossed" takes the
    kernels alone.

    The value is coefficient · mean (or sum, as the penalty says) over the layers. The mean leaves
    out layers that are frozen or that the penalty cannot act on, so they do not dilute it: a single
    map, or for the kernels-only forms one filter per group (value 0), or, for crossed, unit
    Convolutional Similarity, no lag but 0 (1×1 kernels). ``print`` shows which layers are in. A
    layer that a forward pass skips adds 0.

    Args:
        model: The model to train. Its weights are read anew at every call, through any
            parametrization; a weight shared by several layers counts once.
        penalty: "recommended", "crossed", "authors" (as published), a rival's name in
            `convsim.PRESETS`, a `Penalty` on kernels or an `ActivationPenalty` on feature maps.
        coefficient: The weight of the penalty, a number ≥ 0, or a function of how often `step` has
            been called, which makes a schedule. The preset's own if None. With "auto" the first
            step finds it, so that the penalty's gradient is as long as the loss', for a loss or a
            penalty of unknown scale (experiments/09_automatic).
        decay_steps: Let the coefficient fall in a line from its value to 0 over so many calls of
            `step`; None to keep it.
        layers: Which convolutions, as in `convsim.conv_layers`: a name pattern, a type, a
            predicate, or several. Layers count while they are not frozen.

    Raises:
        ConvsimError: If the model has no convolution, none is selected or trainable, one is lazy,
            or an option is unknown.

    Cost: the penalty's own, with no dependence on batch or image size: see `MapSimilarity`; for the
    kernels-only forms one or two passes over the selected weights.

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
        penalty: str | Penalty | ActivationPenalty = "recommended",
        *,
        coefficient: CoefficientLike | None = None,
        decay_steps: int | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        chosen = preset(penalty)
        self.penalty = chosen.penalty
        _ = conv_layers(model, layers, frozen=False)  # refuse a model of frozen layers
        self.layers = tuple(conv_layers(model, layers))
        self.steps = 0
        self._model = model
        self._coefficient = Coefficient(
            chosen.coefficient if coefficient is None else coefficient, decay_steps
        )
        with torch.no_grad():
            banks = {layer.name: layer.outline() for layer in self.layers}
        self._able = [layer for layer in self.layers if self.penalty.acts_on(banks[layer.name])]
        self._shapes = {name: tuple(bank.filters.shape) for name, bank in banks.items()}
        self._sharded = {layer.name for layer in self.layers if settle_gradients_(layer.module)}
        self._balance = Balance(self._coefficient.pending)
        self._samples = self._watch(modules_of(model, self._able))
        self._attachment = Attachment()
        self._warned = False
        if self._samples is None and self._coefficient.automatic:
            self._refuse_auto()
        warn_of_few(self.penalty, self.layers, self._able)

    def _watch(self, modules: Iterable[tuple[str, nn.Module]]) -> Samples | None:
        if not isinstance(self.penalty, ActivationPenalty):
            return None
        return Samples(modules, self.penalty, self._balance)

    @property
    def acting(self) -> list[ConvLayer]:
        """The layers that the penalty acts on and that are not frozen now."""
        return [layer for layer in self._able if layer.trains]

    @property
    def coefficient(self) -> float:
        """The coefficient at this step; with "auto", 0 until it is found."""
        self._settle()
        return self._coefficient.at(self.steps)

    def __call__(self) -> Tensor:
        """Compute coefficient · penalty, a differentiable scalar on the first layer's device.

        Of an attached regularizer, which adds the gradient itself, it is detached: to look at.
        """
        value = self._weighted()
        return value.detach() if self._attachment else value

    def _weighted(self) -> Tensor:
        if self._coefficient.pending and self._samples is None:
            raise ConvsimError(
                'coefficient="auto" is found from the gradient of the loss, which loss + '
                "regularizer() does not know for a penalty on kernels. Use loss.backward(); "
                "regularizer.backward_()."
            )
        self._settle(together=True)
        acting = self.acting
        factor = self._layer_factor(acting)
        # While it is pending, 0 with a gradient to be weighed.
        coefficient = 1.0 if self._coefficient.pending else self.coefficient
        if self._samples is not None:
            value = self._of_maps(self._runs(acting), factor * coefficient)
        else:
            value = self._reduced(list(self._values(acting).values()), factor * coefficient)
        return value - value.detach() if self._coefficient.pending else value

    def _of_maps(self, runs: list[tuple[str, Tensor]], factor: float) -> Tensor:
        """Sum over layers; of one that ran several times, take the mean."""
        if not runs:
            return self._nothing()
        assert isinstance(self.penalty, ActivationPenalty)
        times = Counter(name for name, _ in runs)
        weights = [factor / times[name] for name, _ in runs]
        return self.penalty.total([maps_SM for _, maps_SM in runs], weights)

    def _runs(self, layers: list[ConvLayer]) -> list[tuple[str, Tensor]]:
        """List the samples of each layer, for each time that it ran: none if it was skipped."""
        self._require_same_layers()
        names = {layer.name for layer in layers}
        asked = self._samples.ask().items() if self._samples is not None and layers else ()
        return [(name, maps_SM) for name, own in asked if name in names for maps_SM in own]

    def _values(self, layers: list[ConvLayer]) -> dict[str, Tensor]:
        """Compute the penalty of each layer that has one: a skipped layer has no maps."""
        if isinstance(self.penalty, ActivationPenalty):
            runs = self._runs(layers)
            by_layer: dict[str, list[Tensor]] = {}
            values = self.penalty.values([maps_SM for _, maps_SM in runs])
            for (name, _), value in zip(runs, values, strict=True):
                by_layer.setdefault(name, []).append(value)
            return {name: torch.stack(own).mean() for name, own in by_layer.items()}
        self._require_same_layers()
        banks = [layer.bank(*layer.read(shares=self.penalty.takes_shares)) for layer in layers]
        values = self.penalty.values(banks) if banks else []
        return {layer.name: value for layer, value in zip(layers, values, strict=True)}

    def _reduced(self, values: list[Tensor], factor: float) -> Tensor:
        """Put the layers together."""
        if not values:
            return self._nothing()
        return torch.stack([value.to(values[0].device) for value in values]).sum() * factor

    def _layer_factor(self, acting: list[ConvLayer]) -> float:
        return 1 / max(1, len(acting)) if self.penalty.reduction == "mean" else 1.0

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=next(self.layers[0].module.parameters()).device)

    def backward_(self, scale: float = 1.0) -> Tensor:
        """Add coefficient · scale · gradient of a penalty on kernels to the parameters' ``.grad``.

        No graph is made, which spares memory and time. Call it once per optimizer step: after the
        last backward of an accumulation, before gradient clipping. Parameters that require no
        gradient are left alone.

        Args:
            scale: What the loss was multiplied by before its backward, as
                ``scaler.get_scale()`` of a GradScaler whose gradients are not yet unscaled.

        Returns:
            coefficient · penalty, detached, as `__call__`.

        Raises:
            ConvsimError: If the penalty is on feature maps, the regularizer is attached, or scale
                is not above 0.
        """
        if self._attachment:
            raise ConvsimError(
                "The regularizer is attached and adds its gradient itself: it would count twice. "
                "Call values() to look, or remove() first."
            )
        return self._add_gradients(scale)

    def _add_gradients(self, scale: float) -> Tensor:
        if not isinstance(self.penalty, Penalty):
            raise ConvsimError(
                f"{self.penalty} acts on feature maps and has to enter the loss: use "
                "loss + regularizer(), or attach(criterion)."
            )
        if not 0 < scale < math.inf:
            raise ConvsimError(f"scale must be a finite number > 0; got {scale!r}.")
        self._require_same_layers()
        acting = self.acting
        if not acting:
            return self._nothing()
        settle_shards_(acting, self._sharded)
        factor = self._layer_factor(acting)
        values = add_penalty_gradients_(
            acting, self.penalty, self._coefficient, self.steps, factor, scale
        )
        return self._reduced(values, factor * self.coefficient)

    def attach(
        self,
        target: nn.Module | torch.optim.Optimizer,
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Self:
        """Have the penalty added automatically, for a loop that you do not want to touch.

        To a criterion, such as ``nn.CrossEntropyLoss()``, or to a model that returns its loss: the
        penalty is added to what it returns, wherever gradients are recorded and the layers have
        run. So whatever the loop does to its loss is done to the penalty; a loop that passes back
        another loss than the returned one has no penalty.

        To an optimizer, for a penalty on kernels: the gradient is added before every step. It comes
        last, where torch's optimizers add their weight decay: after accumulation, after a
        GradScaler's unscaling (steps that it skips add nothing) and after clipping, which does not
        see it. After each call of a closure given to ``step`` it is added again, and the loss
        returned includes the penalty.

        Attaching again moves the regularizer. Attaching another of the same penalty on the same
        layers replaces it.

        Args:
            target: The criterion, a model that returns its loss, or the optimizer, or what
                Accelerate, Fabric or Lightning wraps it in. With one optimizer for each part of a
                model, one regularizer each.
            optimizer: The one whose steps advance the schedule; `target` if that is one. Without
                it, call `step`.

        Returns:
            This regularizer.

        Raises:
            ConvsimError: If the optimizer steps none or only some of the layers or calls no hooks,
                or the penalty is on feature maps, which an optimizer comes too late for.
        """
        if isinstance(target, nn.Module):
            handles = [add_to_losses(target, lambda _: self.of_new_maps())]
        elif self._samples is not None and not hasattr(target, "step"):
            raise ConvsimError(
                "attach() takes a module, such as nn.CrossEntropyLoss(); got "
                f"{getattr(target, '__name__', type(target).__name__)}. Use loss + regularizer() "
                "with a function."
            )
        elif self._samples is not None:
            raise ConvsimError(
                f"{self.penalty} acts on feature maps, and an optimizer comes after their backward "
                "pass: attach the regularizer to the criterion, attach(criterion), or use "
                "loss + regularizer()."
            )
        else:
            optimizer = target
            handles = [before_every_step(target, self.acting, self._add_gradients)]
        if optimizer is not None:
            handles.append(after_every_step(optimizer, self.step))
        self._attachment.move(self, target, handles)
        return self

    def of_new_maps(self) -> Tensor | None:
        """Compute the penalty; None if it needs maps and the layers have put out no new ones."""
        if self._samples is None or self._samples.fresh:
            return self._weighted()
        if not self._samples.ran and not self._warned:
            self._warned = True
            warnings.warn(
                "The regularizer is attached to a loss, but its layers have put out no feature "
                "maps so far: nothing is added. Attach it to the criterion of this model, and "
                "checkpoint activations with use_reentrant=False.",
                ConvsimWarning,
                stacklevel=2,
            )
        return None

    def remove(self) -> None:
        """Leave what it is attached to, and stop looking at the model's forward passes.

        Dropping a regularizer that is not attached does so too.
        """
        self._attachment.remove()
        if self._samples is not None:
            self._samples.close()

    def forget(self) -> None:
        """Drop what a penalty on feature maps has kept of forward passes.

        Those since the last call are averaged, as a step may need several. Call it where a pass is
        not to count: a batch skipped before the penalty was asked for, or an evaluation that
        records gradients.
        """
        if self._samples is not None:
            self._samples.forget()

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """Compute each selected layer's penalty, without the coefficient, for logging.

        A layer that the penalty cannot act on, or that the last forward pass skipped, has 0.
        """
        able = self._able if self._samples is not None else list(self.layers)
        found = {name: value.item() for name, value in self._values(able).items()}
        return {layer.name: found.get(layer.name, 0.0) for layer in self.layers}

    def step(self) -> None:
        """Advance the coefficient's schedule by one."""
        self._settle(together=True)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: where the schedule stands, and what "auto" found."""
        self._settle()
        return {"steps": self.steps, "coefficient": self._coefficient.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ConvsimError: If it is not a regularizer's state.
        """
        steps, found = state.get("steps"), state.get("coefficient")
        if not isinstance(steps, int) or not (found is None or 0 < found < math.inf):
            raise ConvsimError(
                f"Not a regularizer state: {state!r}. Give what state_dict() returned."
            )
        self.steps = steps
        self._coefficient.resume(found)
        self._balance.pending = self._coefficient.pending

    def _settle(self, *, together: bool = False) -> None:
        """Find the coefficient of a penalty on maps from the gradients of the last backward.

        With several ranks only where all of them ask: one that looks must not wait for the others.
        """
        ready = self._balance.pending and self._balance.weighed
        if ready and (together or not self._balance.shared):
            self._coefficient.find(*self._balance.lengths())
            self._balance.forget()
            self._balance.pending = self._coefficient.pending

    def _require_same_layers(self) -> None:
        for layer in self._able:
            try:
                now = self._model.get_submodule(layer.name)
            except AttributeError:
                now = None
            if now is not layer.module:
                raise ConvsimError(
                    f"Layer {layer.name!r} was replaced after the regularizer was made, which "
                    "still holds the old one. Make a new Regularizer of the model as it is now."
                )

    def _refuse_auto(self) -> None:
        for layer in self._able:
            if layer.parametrized:
                raise ConvsimError(
                    f'Layer {layer.name!r} computes its weight from others: coefficient="auto" '
                    "cannot read the loss' gradient there. Give a number, or leave the layer out "
                    "with layers=…."
                )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what looks at this very model: a copy looks at its own."""
        watched = self._samples.modules if self._samples is not None else ()
        return vars(self) | {"_samples": watched, "_attachment": Attachment()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._samples = self._watch(state["_samples"])

    def __repr__(self) -> str:
        return self._described().text()

    def _repr_html_(self) -> str:
        """Show the layers as a table in a notebook."""
        return self._described().html()

    def _described(self) -> Description:
        coefficient = "auto" if self._coefficient.pending else f"{self.coefficient:g}"
        head = f"Regularizer({self.penalty}, coefficient={coefficient})"
        return Description(head, [(x, self._shapes[x.name], x in self._able) for x in self.layers])
