"""One training run on Lightning: a checkpoint every epoch, exact resume, one look at test data."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy

from convsim.errors import ConvsimError, NonFiniteError
from convsim.initialization import initialize_
from convsim.integrations.lightning import RegularizerCallback
from convsim.lab.datasets import ImageData
from convsim.lab.methods import Method
from convsim.lab.models import build_model
from convsim.lab.records import Record, environment, record_key
from convsim.redundancy import measure

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with its number from 1, how many there are, and its scores."""


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the method: SGD with momentum on cross-entropy.

    Attributes:
        model: A name that `convsim.lab.models.build_model` knows.
        width: The model's width; the model's own default if None, as in the next two.
        norm: "batch" or "none".
        activation: "relu", "elu" or "leaky_relu".
        epochs: Passes over the training part.
        batch_size: Images per step.
        lr: The learning rate at the start.
        momentum: SGD's momentum.
        weight_decay: SGD's weight decay.
        schedule: "cosine" (to zero over the epochs), "constant", or "steps" (a tenth after half and
            after three quarters of the epochs).
        validation: The share of the training part that is held out and scored after every epoch.
        measured_images: How many test images feature-map similarity is measured on.
    """

    model: str = "cnn"
    width: int | None = None
    norm: Literal["batch", "none"] | None = None
    activation: Literal["relu", "elu", "leaky_relu"] | None = None
    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    validation: float = 0.1
    measured_images: int = 256


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result.

    Attributes:
        method: The method, with one coefficient.
        seed: Seeds the weights and the order of the images.
        recipe: The recipe.
        data: The data; what its `test_images` are is looked at once, at the end.
        test: Whether to look at them at all; tuning does not.
    """

    method: Method
    seed: int
    recipe: Recipe
    data: ImageData = field(repr=False)
    test: bool = True

    def configuration(self) -> Record:
        """Return what decides the result, as JSON."""
        data = {
            "name": self.data.name,
            "fingerprint": self.data.fingerprint,
            "train": len(self.data.train_labels),
            "test": len(self.data.test_labels),
        }
        method = asdict(self.method) | {"coefficients": list(self.method.coefficients)}
        return {
            "method": method,
            "seed": self.seed,
            "recipe": asdict(self.recipe),
            "data": data,
            "looks_at_test": self.test,
        }

    @property
    def key(self) -> str:
        """A name for the configuration."""
        return record_key(self.configuration())


class Classifier(LightningModule):
    """A model under a recipe; uint8 images in, standardised by the training part's mean and std."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, recipe: Recipe, train_images: Tensor) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        pixels = train_images.float().transpose(0, 1).flatten(1)
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", pixels.mean(1).view(shape))
        self.register_buffer("std", pixels.std(1).clamp(min=1e-3).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.model((images.float() - self.mean) / self.std)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Compute the loss, and stop if it is not finite."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self._require_finite(loss, "training loss")
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Score a batch of the held-out share."""
        images, labels = batch
        logits = self(images)
        self._require_finite(logits.sum(), "validation output")
        correct = multiclass_accuracy(logits, labels, logits.shape[1], average="micro")
        self.log("accuracy", correct, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Build SGD with the recipe's schedule, stepped every epoch."""
        r = self.recipe
        optimizer = torch.optim.SGD(
            self.parameters(), lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay
        )
        schedulers = torch.optim.lr_scheduler
        scheduler: dict[str, Callable[[], Any]] = {
            "constant": lambda: schedulers.ConstantLR(optimizer, factor=1.0),
            "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, r.epochs),
            "steps": lambda: schedulers.MultiStepLR(
                optimizer, [r.epochs // 2, r.epochs * 3 // 4], gamma=0.1
            ),
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler[r.schedule]()}

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"The {what} became {value.item()} in epoch {self.current_epoch + 1}, step "
                f"{self.global_step}. Training stopped; the last good checkpoint is kept. Lower "
                f"the learning rate (now {self.recipe.lr}) or the penalty's coefficient."
            )


class _ShuffledBatches(Sampler[list[int]]):
    """Index lists in an order that seed and epoch alone decide, so that a resume repeats it."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator)
        return (batch.tolist() for batch in order.split(self.batch_size))


class _Bookkeeping(Callback):
    """Seed every epoch, save after every epoch, and keep the curve in the checkpoint."""

    def __init__(self, run: Run, folder: Path | None, progress: Progress | None) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.curve: list[dict[str, float]] = []
        self.started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(self.run.seed * 1_000_003 + trainer.current_epoch)
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        scores["seconds"] = time.perf_counter() - self.started
        self.curve.append(scores)
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / "last.ckpt")
        if self.progress is not None:
            self.progress(len(self.curve), self.run.recipe.epochs, scores)

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.run.key, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve = list(state["curve"])


def train(
    run: Run, folder: Path | None = None, progress: Progress | None = None
) -> tuple[nn.Module, Record]:
    """Train one network, resuming from the folder's checkpoint if there is one.

    Args:
        run: What to train.
        folder: Where to keep a checkpoint after every epoch; none is kept if None.
        progress: Called after every epoch.

    Returns:
        The trained model, in ``eval()`` mode, and the run's record: its configuration, results,
        the settings read back from the live objects, and the environment.

    Raises:
        ConvsimError: If the folder's checkpoint belongs to another configuration or is corrupt.
        NonFiniteError: If the loss stops being finite; the last good checkpoint stays.
    """
    recipe, method = run.recipe, run.method
    split = run.data.hold_out(recipe.validation, seed=0)
    checkpoint = None if folder is None else folder / "last.ckpt"
    finished = 0
    if checkpoint is not None and checkpoint.exists():
        finished = _finished_epochs(checkpoint, run)

    torch.manual_seed(run.seed)
    options = {key: getattr(recipe, key) for key in ("width", "norm", "activation")}
    channels = run.data.train_images.shape[1]
    model = build_model(
        recipe.model, classes=len(run.data.classes), channels=channels,
        **{key: value for key, value in options.items() if value is not None},
    )  # fmt: skip
    initialization_seconds = 0.0
    if method.initialization is not None and not finished:
        started = time.perf_counter()
        initialize_(model, method.initialization, steps=method.initialization_steps)
        initialization_seconds = time.perf_counter() - started

    bookkeeping = _Bookkeeping(run, folder, progress)
    callbacks: list[Callback] = [bookkeeping]
    if method.regularizer is not None:
        callbacks.append(RegularizerCallback(method.regularizer, coefficient=method.coefficient))
    classifier = Classifier(model, recipe, split.train_images)
    batches = _ShuffledBatches(len(split.train_labels), recipe.batch_size, run.seed)
    batches.set_epoch(finished)  # Lightning sets it too late for the first epoch after a resume
    with _as_a_library():
        trainer = Trainer(
            max_epochs=recipe.epochs, callbacks=callbacks, accelerator="auto", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(
            classifier,
            DataLoader(
                TensorDataset(split.train_images, split.train_labels),
                sampler=batches, batch_size=None,
            ),
            _in_order(split.test_images, split.test_labels),
            ckpt_path=checkpoint if finished else None,
            weights_only=True,
        )  # fmt: skip
    classifier.eval()

    curve = bookkeeping.curve
    result: Record = {
        "validation_accuracy": [scores["accuracy"] for scores in curve],
        "train_loss": [scores["train_loss"] for scores in curve],
        "penalty": [scores["convsim/penalty"] for scores in curve if "convsim/penalty" in scores],
        "seconds": sum(scores["seconds"] for scores in curve),
        "initialization_seconds": initialization_seconds,
    }
    if run.test:
        result["test_accuracy"] = accuracy(classifier, run.data.test_images, run.data.test_labels)
        report = measure(
            classifier,
            _in_order(run.data.test_images[: recipe.measured_images],
                      run.data.test_labels[: recipe.measured_images], batch_size=64),
        )  # fmt: skip
        result["similarity"] = {
            layer.name.removeprefix("model."): layer.similarity
            for layer in report.layers if layer.filters > 1
        }  # fmt: skip
    record = {
        "schema": 1,
        "key": run.key,
        "configuration": run.configuration(),
        "result": result,
        "effective": _effective(trainer, classifier, callbacks),
        "environment": environment(),
    }
    return classifier.model, record


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the share of images that a classifier labels rightly, in ``eval()`` mode."""
    classifier.eval()
    device = next(classifier.parameters()).device
    correct = sum(
        int((classifier(image.to(device)).argmax(1).cpu() == label).sum())
        for image, label in _in_order(images, labels)
    )
    return correct / len(labels)


def _in_order(images: Tensor, labels: Tensor, batch_size: int = 500) -> DataLoader[Any]:
    batches = [
        list(range(len(labels)))[i : i + batch_size] for i in range(0, len(labels), batch_size)
    ]
    return DataLoader(TensorDataset(images, labels), sampler=batches, batch_size=None)


def _effective(trainer: Trainer, classifier: Classifier, callbacks: list[Callback]) -> Record:
    """Read the settings back from the objects that were in effect."""
    (optimizer,) = trainer.optimizers
    group = optimizer.param_groups[0]
    regularizers = [c.regularizer for c in callbacks if isinstance(c, RegularizerCallback)]
    return {
        "optimizer": type(optimizer).__name__,
        **{key: group[key] for key in ("initial_lr", "momentum", "weight_decay")},
        "final_lr": group["lr"],
        "steps": trainer.global_step,
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "regularizer": [repr(regularizer).splitlines() for regularizer in regularizers],
    }


def _finished_epochs(path: Path, run: Run) -> int:
    """Count the epochs of a run's checkpoint, refusing one of another run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        bookkeeping = state["callbacks"][_Bookkeeping.__qualname__]
        found, finished = bookkeeping["key"], len(bookkeeping["curve"])
    except Exception as error:
        raise ConvsimError(
            f"{path} is not a checkpoint of convsim that can be read ({type(error).__name__}: "
            f"{error}). Delete it to start this run anew."
        ) from error
    if found != run.key:
        raise ConvsimError(
            f"{path} belongs to a run with another configuration ({found}, not {run.key}). Resume "
            "with the options it was started with, or choose another folder."
        )
    return finished


@contextmanager
def _as_a_library() -> Iterator[None]:
    """Keep Lightning's banners off the terminal, and let Ctrl-C through as what it is.

    Lightning turns a KeyboardInterrupt into exit code 1 and ignores any further one.
    """
    logger = logging.getLogger("lightning.pytorch")
    level, on_interrupt = logger.level, signal.getsignal(signal.SIGINT)
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
