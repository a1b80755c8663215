"""The Lightning module that every run trains, and its test accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from convsim.errors import NonFiniteError
from convsim.lab.arithmetic import ARITHMETIC
from convsim.lab.augmentation import crop_and_flip
from convsim.lab.datasets.image_data import Images, pixel_statistics
from convsim.lab.loading import in_order
from convsim.lab.models import logits_of
from convsim.lab.muon import KernelMuon
from convsim.lab.preprocessing import Standardised
from convsim.lab.runs import Recipe


class Classifier(LightningModule):
    """A model under a recipe; uint8 images in, standardised by the training part's mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, recipe: Recipe, train_images: Images) -> None:
        super().__init__()
        self.memory_format = ARITHMETIC[recipe.precision].memory_format
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.recipe = recipe
        # Files are cropped as they are read.
        self.crops = recipe.augment and isinstance(train_images, Tensor)
        height, width = train_images.shape[2:]
        self.size = height if height == width else None
        mean, std = pixel_statistics(train_images)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to logits (N, classes)."""
        standardised = (images.float() - self.mean) / self.std
        return logits_of(self.model(standardised.contiguous(memory_format=self.memory_format)))

    def preprocessing(self) -> Standardised:
        """Return what is done to an image before the model reads it."""
        mean, std = (tuple(part.flatten().tolist()) for part in (self.mean, self.std))
        return Standardised(mean, std, self.size)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Compute the loss, and stop if it is not finite."""
        images, labels = batch
        if self.crops:
            images = crop_and_flip(images)
        loss = nn.functional.cross_entropy(self(images), labels)
        self._require_finite(loss, "training loss")
        self.log(
            "train_loss", loss,
            on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True,
        )  # fmt: skip
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Score a batch of the held-out share."""
        images, labels = batch
        logits = self(images)
        self._require_finite(logits.sum(), "validation output")
        correct = multiclass_accuracy(logits, labels, logits.shape[1], average="micro")
        self.log("accuracy", correct, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Build the recipe's optimizer with its schedule, stepped every epoch or every step."""
        r = self.recipe
        given: dict[str, Any] = {"lr": r.lr, "weight_decay": r.weight_decay}
        kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "sgd": lambda: torch.optim.SGD(self.parameters(), momentum=r.momentum, **given),
            "adam": lambda: torch.optim.Adam(self.parameters(), **given),
            "adamw": lambda: torch.optim.AdamW(self.parameters(), **given),
            "muon": lambda: KernelMuon(self.model, momentum=r.momentum, **given),
        }
        optimizer = kinds[r.optimizer]()
        schedulers = torch.optim.lr_scheduler
        scheduler: dict[str, Callable[[], Any]] = {
            "constant": lambda: schedulers.ConstantLR(optimizer, factor=1.0),
            "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, r.epochs),
            "annealed": lambda: schedulers.CosineAnnealingLR(
                optimizer, int(self.trainer.estimated_stepping_batches)
            ),
            "steps": lambda: schedulers.MultiStepLR(
                optimizer, [r.epochs // 2, r.epochs * 3 // 4], gamma=0.1
            ),
        }
        interval = "step" if r.schedule == "annealed" else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler[r.schedule](), "interval": interval},
        }

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"The {what} became {value.item()} in epoch {self.current_epoch + 1}, step "
                f"{self.global_step}. Training stopped; the last good checkpoint is kept. Lower "
                f"the learning rate (now {self.recipe.lr}) or the penalty's coefficient."
            )


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Images, labels: Tensor) -> float:
    """Compute the share of images that a classifier labels correctly, in ``eval()`` mode."""
    classifier.eval()
    device = next(classifier.parameters()).device
    correct = sum(
        int((classifier(image.to(device)).argmax(1).cpu() == label).sum())
        for image, label in in_order(images, labels)
    )
    return correct / len(labels)
