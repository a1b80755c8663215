"""The penalty in Hugging Face's Trainer: a callback, and a mixin for what has to enter the loss."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from convsim.errors import ConvsimError
from convsim.integrations.deferred import DeferredRegularizer
from convsim.regularizer import Regularizer
from convsim.regularizer.loss_hooks import add_to_losses
from convsim.regularizer.optimizer_hooks import grad_scale


class RegularizerTrainerCallback(DeferredRegularizer, TrainerCallback):
    """Add a penalty to the training of a Trainer; no subclass is needed.

    A penalty on feature maps is added to the loss that the model returns, and divided as Trainer
    divides that loss. A penalty on kernels adds its gradient before every optimizer step, after
    clipping. Both count once per optimizer step, with any gradient accumulation and mixed
    precision. A schedule counts optimizer steps. The last value is logged as ``convsim/PENALTY``,
    such as ``convsim/recommended``, and seen by callbacks that come after this one. The arguments
    are those of `DeferredRegularizer`.

    Raises:
        ConvsimError: While training, for a penalty on feature maps if the model does not return its
            loss (as with ``compute_loss_func`` or label smoothing): use `RegularizerTrainerMixin`.
    """

    _value: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers, once the model is on its device."""
        model = kwargs["model"]
        self.begin(model, _states(state))
        if self.on_maps:
            ranks = args.world_size if args.average_tokens_across_devices else 1
            apart = 1 / (args.gradient_accumulation_steps * ranks)
            self._handle = add_to_losses(model, partial(self._of_a_batch, model, apart))

    def _of_a_batch(self, model: nn.Module, apart: float, kwargs: dict[str, Any]) -> Tensor | None:
        """Compute what a batch adds, which Trainer divides unless the model counts its items."""
        if self.regularizer is None or not model.training:
            return None
        counted = kwargs.get("num_items_in_batch") is not None
        value = self.regularizer()
        self._value = value.detach()
        return value * (apart if counted else 1.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the schedule to this step, also after a resume."""
        if self.regularizer is not None:
            self.regularizer.steps = state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradient of a penalty on kernels."""
        if self.regularizer is None:
            return
        if not self.on_maps:
            optimizer = kwargs.get("optimizer")
            scaler = getattr(optimizer, "scaler", None)  # Accelerate's wrapper holds both
            scale = grad_scale(scaler, getattr(optimizer, "optimizer", optimizer))
            self._value = self.regularizer.backward_(scale)
        self.save_to(_states(state))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the last value."""
        if self._value is not None and "loss" in (kwargs.get("logs") or {}):
            for logged in (kwargs["logs"], *state.log_history[-1:]):
                logged[self.log_name] = self._value.item()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model's forward passes alone again."""
        if self.on_maps:
            self._handle.remove()
        self.end()


def _states(state: TrainerState) -> dict[str, Any]:
    """Find the regularizers' states in the trainer's, which its checkpoints hold."""
    states: Any = state.stateful_callbacks
    found: dict[str, Any] = states.setdefault("convsim", {})
    return found


class RegularizerTrainerMixin:
    """Add a penalty to the loss of a Trainer whose model does not return it.

    Each forward pass adds its share, so that an optimizer step sees coefficient · the mean of the
    penalty over the accumulated batches. The schedule counts optimizer steps. The logged loss
    contains the penalty; that of an evaluation does not. With more than one process every rank adds
    the penalty of its own batch, and DDP averages them::

        class MyTrainer(RegularizerTrainerMixin, Trainer):
            pass

        MyTrainer(model, arguments, regularizer=Regularizer(model, "decov"), …)

    Args:
        regularizer: A regularizer of the model that the Trainer is given.

    Raises:
        ConvsimError: If the regularizer is of another model, as with ``model_init``.
    """

    def __init__(self, *args: Any, regularizer: Regularizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regularizer = regularizer
        trained: nn.Module = self.model  # type: ignore[attr-defined]
        modules = set(trained.modules())
        if not all(layer.module in modules for layer in regularizer.layers):
            raise ConvsimError(
                "The regularizer looks at another model than the Trainer trains. Give both the "
                "same one, and no model_init."
            )

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss as before, with the penalty added while training."""
        base: Any = super()
        found = base.compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if not model.training:
            return found
        loss, *rest = found if return_outputs else (found,)
        self.regularizer.steps = self.state.global_step  # type: ignore[attr-defined]
        loss = loss + self._share(kwargs.get("num_items_in_batch")) * self.regularizer()
        return (loss, *rest) if return_outputs else loss

    def _share(self, items: Tensor | int | None) -> float:
        """Divide by the accumulation where Trainer does not, as `Trainer.training_step` decides."""
        trainer: Any = self
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = trainer.model_accepts_loss_kwargs and items is not None
            scaled = counted or trainer.compute_loss_func is not None
        return 1 / trainer.current_gradient_accumulation_steps if scaled else 1.0
