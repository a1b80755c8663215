"""The penalty as a Lightning callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from convsim.kernels import LayerFilter
from convsim.penalties import ActivationPenalty, Penalty
from convsim.regularizer import Regularizer


class RegularizerCallback(Callback):
    """Add a penalty's closed-form gradient before every optimizer step.

    Once per optimizer step whatever the gradient accumulation, after mixed precision's unscaling
    and before gradient clipping. The coefficient's schedule counts epochs. The mean penalty of each
    epoch is logged as ``convsim/penalty``.

    Args:
        penalty: As in `convsim.Regularizer`, and so the other arguments.
        coefficient: A number, a function of the epoch, or "auto".
        layers: Which convolutions.
    """

    def __init__(
        self,
        penalty: str | Penalty = "recommended",
        *,
        coefficient: float | Callable[[int], float] | Literal["auto"] | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "penalty": penalty,
            "coefficient": coefficient,
            "layers": layers,
        }
        self.regularizer: Regularizer | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers, once the model is on its device."""
        self.on_fit_end(trainer, pl_module)
        self.regularizer = Regularizer(pl_module, **self._options)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model's forward passes alone again."""
        if self.regularizer is not None:
            self.regularizer.remove()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the schedule to this epoch, also after a resume."""
        if self.regularizer is not None:
            self.regularizer.steps = trainer.current_epoch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Add a penalty on feature maps to the loss, in place: DDP allows one backward a step."""
        if self.regularizer is None or not self._on_maps():
            return
        value = self.regularizer()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = (scaler.get_scale() if scaler else 1.0) / trainer.accumulate_grad_batches
        loss.add_(value * scale)
        pl_module.log(
            "convsim/penalty", value.detach(), on_step=False, on_epoch=True, sync_dist=True
        )

    def _on_maps(self) -> bool:
        return self.regularizer is not None and isinstance(
            self.regularizer.penalty, ActivationPenalty
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient."""
        if self.regularizer is not None and not self._on_maps():
            value = self.regularizer.backward_()
            _log(pl_module, value)


def _log(module: LightningModule, value: torch.Tensor) -> None:
    """Log the epoch's mean, over ranks too."""
    name = "convsim/penalty"
    module.log(name, value.detach(), on_step=False, on_epoch=True, sync_dist=True)
