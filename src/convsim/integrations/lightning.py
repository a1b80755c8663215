"""Lightning callbacks: one adds the penalty, one logs what feature maps become."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from convsim.errors import ConvsimError
from convsim.integrations.deferred import DeferredRegularizer
from convsim.redundancy import Batch, measure
from convsim.regularizer.loss_hooks import join_
from convsim.regularizer.optimizer_hooks import grad_scale, owns_layers


class RegularizerCallback(DeferredRegularizer, Callback):
    """Add a penalty to whatever a module's training step returns, or to each ``manual_backward``.

    A penalty on feature maps joins the backward pass of the loss and shares its scale. A penalty on
    kernels adds its closed-form gradient before gradient clipping, at every optimizer step that
    follows a backward pass; with several optimizers, at the steps of the one that owns all selected
    layers. Both count once per optimizer step, with any gradient accumulation and mixed precision.
    A schedule counts optimizer steps. The mean penalty of each epoch is logged as
    ``convsim/PENALTY``, such as ``convsim/recommended``, or ``convsim/recommended[LAYERS]``. The
    arguments are those of `DeferredRegularizer`.

    Raises:
        ConvsimError: While training, if several optimizers share the layers.
    """

    _states: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed
    _reached = False

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

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Forget the maps of a batch that was skipped: it had no backward pass."""
        if self.regularizer is not None:
            self.regularizer.forget()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Have a penalty on feature maps join the backward pass, which DDP allows once a step."""
        self._reached = True
        if self.regularizer is None or not self.on_maps:
            return
        self.regularizer.steps = trainer.global_step
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = (scaler.get_scale() if scaler else 1.0) / trainer.accumulate_grad_batches
        if (value := self.regularizer.of_new_maps()) is not None:  # of one forward pass once
            join_(loss, value * scale)
            self._log(pl_module, value)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient of a penalty on kernels, if there was a backward pass."""
        reached, self._reached = self._reached, False
        if self.regularizer is None or self.on_maps or not reached:
            return
        if not owns_layers(optimizer, self.regularizer.acting):
            self._reached = len(trainer.optimizers) > 1
            return
        self.regularizer.steps = trainer.global_step
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._log(pl_module, self.regularizer.backward_(grad_scale(scaler, optimizer)))

    def _log(self, module: LightningModule, value: torch.Tensor) -> None:
        """Log the epoch's mean, over ranks too."""
        module.log(self.log_name, value.detach(), on_step=False, on_epoch=True, sync_dist=True)


class RedundancyCallback(Callback):
    """Log how alike a module's feature maps are, on the same images after every so many epochs.

    Logged are ``convsim/similarity``, the mean over layers, and for each layer
    ``convsim/similarity/LAYER`` and ``convsim/rank/LAYER``, its effective rank. The module is left
    as it was; under several processes each measures the same images.

    Args:
        batches: What to measure on, as in `convsim.measure`; kept, so give a few.
        every: After how many epochs.
        options: Further arguments of `convsim.measure`, such as ``layers=``.

    Raises:
        ConvsimError: As `convsim.measure`.

    Cost: that of `convsim.measure`, at the end of such an epoch.
    """

    def __init__(self, batches: Iterable[Batch], every: int = 1, **options: Any) -> None:
        self.batches, self.every, self.options = list(batches), every, options
        if not isinstance(every, int) or every < 1:
            raise ConvsimError(f"every is a number of epochs, 1 or more; got {every!r}.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        if (trainer.current_epoch + 1) % self.every:
            return
        report = measure(pl_module, self.batches, **{"examples": 0, **self.options})
        scalars = {"similarity": report.similarity}
        for layer in report.layers:
            scalars[f"similarity/{layer.name}"] = layer.similarity
            scalars[f"rank/{layer.name}"] = layer.effective_rank
        known = {f"convsim/{name}": x for name, x in scalars.items() if math.isfinite(x)}
        pl_module.log_dict(known, on_epoch=True)
