"""The penalty in Hugging Face's Trainer: a callback, and a mixin for what has to enter the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from convsim.errors import ConvsimError
from convsim.integrations.later import RegularizerLater
from convsim.penalties import ActivationPenalty, preset
from convsim.regularizer import Regularizer
from convsim.regularizer.optimizer_hooks import grad_scale


class RegularizerTrainerCallback(RegularizerLater, TrainerCallback):
    """Add a penalty's gradient before every optimizer step of a Trainer; no subclass is needed.

    Once per optimizer step whatever the gradient accumulation and mixed precision. Trainer clips
    gradients before its callbacks are asked, so the penalty's gradient is not clipped. The
    coefficient's schedule counts epochs, as Trainer's own ``state.epoch`` does. The last value is
    logged as ``convsim_penalty``, and seen by callbacks that come after this one. The arguments are
    those of `RegularizerLater`.

    Raises:
        ConvsimError: For a penalty on feature maps ("decov"), which has to enter the loss.
    """

    def __init__(self, penalty: Any = "recommended", **options: Any) -> None:
        if isinstance(preset(penalty).penalty, ActivationPenalty):
            raise ConvsimError(
                f"{penalty!r} acts on feature maps and has to enter the loss, where a Trainer's "
                "callback is not asked. Use RegularizerTrainerMixin, or a penalty on kernels, such "
                "as 'recommended'."
            )
        super().__init__(penalty, **options)
        self._value: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers, once the model is on its device."""
        self.begin(kwargs["model"], _states(state))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the schedule to this epoch, also after a resume."""
        if self.regularizer is not None:
            self.regularizer.steps = int(state.epoch or 0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradient."""
        if self.regularizer is not None:
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
                logged["convsim_penalty"] = self._value.item()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model's forward passes alone again."""
        self.end()


def _states(state: TrainerState) -> dict[str, Any]:
    """Find the regularizers' states in the trainer's, which its checkpoints hold."""
    states: Any = state.stateful_callbacks
    found: dict[str, Any] = states.setdefault("convsim", {})
    return found


class RegularizerTrainerMixin:
    """Add a penalty to the loss of a Trainer, for "decov" or for gradients clipped with the loss'.

    Each forward pass adds its share, so that an optimizer step sees coefficient · the mean of the
    penalty over the accumulated batches. The coefficient's schedule counts epochs. The logged loss
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
        self.regularizer.steps = int(self.state.epoch or 0)  # type: ignore[attr-defined]
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
