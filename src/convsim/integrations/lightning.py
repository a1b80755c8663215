"""The penalty as a Lightning callback."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from convsim.integrations.later import RegularizerLater
from convsim.penalties import ActivationPenalty
from convsim.regularizer.optimizer_hooks import grad_scale, steps_them


class RegularizerCallback(RegularizerLater, Callback):
    """Add a penalty's closed-form gradient before every optimizer step.

    Once per optimizer step whatever the gradient accumulation, whether mixed precision has unscaled
    by then or not, and before gradient clipping; of several optimizers, at the steps of the one
    that all selected layers belong to. A penalty on feature maps ("decov") enters the loss instead.
    The coefficient's schedule counts epochs. The mean penalty of each epoch is logged as
    ``convsim/penalty``. The
    arguments are those of `RegularizerLater`.

    Raises:
        ConvsimError: While training, if several optimizers share the layers.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._states: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers, once the model is on its device."""
        self.begin(pl_module, self._states)
        self._states = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save what "auto" has found."""
        self.save_to(checkpoint.setdefault("convsim", {}))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state, or keep all until the layers are known; FSDP restores after that."""
        self._states = checkpoint.get("convsim", {})
        self.load_from(self._states)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model's forward passes alone again."""
        self.end()

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
        _log(pl_module, value)

    def _on_maps(self) -> bool:
        return self.regularizer is not None and isinstance(
            self.regularizer.penalty, ActivationPenalty
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient."""
        if self.regularizer is None or self._on_maps():
            return
        if len(trainer.optimizers) > 1 and not steps_them(optimizer, self.regularizer.layers):
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        _log(pl_module, self.regularizer.backward_(grad_scale(scaler, optimizer)))


def _log(module: LightningModule, value: torch.Tensor) -> None:
    """Log the epoch's mean, over ranks too."""
    name = "convsim/penalty"
    module.log(name, value.detach(), on_step=False, on_epoch=True, sync_dist=True)
