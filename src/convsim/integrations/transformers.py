"""The penalty as a callback of Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from convsim.errors import ConvsimError
from convsim.kernels import LayerFilter
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.regularizer import Regularizer


class RegularizerTrainerCallback(TrainerCallback):
    """Add a penalty's gradient before every optimizer step of a Trainer; no subclass is needed.

    Once per optimizer step whatever the gradient accumulation, after mixed precision's unscaling.
    Trainer clips gradients before its callbacks are asked, so the penalty's gradient is not
    clipped. The coefficient's schedule counts epochs. The last value is logged as
    ``convsim_penalty``.

    Args:
        penalty: As in `convsim.Regularizer`, and so the other arguments.
        coefficient: A number, a function of the epoch, or "auto".
        layers: Which convolutions.

    Raises:
        ConvsimError: For a penalty on feature maps ("decov"), which has to enter the loss.
    """

    def __init__(
        self,
        penalty: str | Penalty = "recommended",
        *,
        coefficient: float | Callable[[int], float] | Literal["auto"] | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        if isinstance(preset(penalty).penalty, ActivationPenalty):
            raise ConvsimError(
                f"{penalty!r} acts on feature maps and has to enter the loss, where a Trainer's "
                "callback is not asked. Choose a penalty on kernels, such as 'recommended'."
            )
        self._options: dict[str, Any] = {
            "penalty": penalty,
            "coefficient": coefficient,
            "layers": layers,
        }
        self.regularizer: Regularizer | None = None
        self._value: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers, once the model is on its device."""
        model: nn.Module = kwargs["model"]
        self.on_train_end(args, state, control)
        self.regularizer = Regularizer(model, **self._options)

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
            self._value = self.regularizer.backward_()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the last value."""
        if self._value is not None and "loss" in (kwargs.get("logs") or {}):
            kwargs["logs"]["convsim_penalty"] = self._value.item()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model's forward passes alone again."""
        if self.regularizer is not None:
            self.regularizer.remove()
