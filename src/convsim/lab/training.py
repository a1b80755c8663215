"""One training run on Lightning: a checkpoint every epoch, exact resume, one look at test data."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import Sampler

from convsim.batches import saying_why
from convsim.errors import ConvsimError
from convsim.initialization import initialize_
from convsim.integrations.lightning import RegularizerCallback
from convsim.lab.arithmetic import ARITHMETIC
from convsim.lab.checkpoints import (
    Bookkeeping,
    Progress,
    WholeCheckpoints,
    damaged,
    finished_epochs,
)
from convsim.lab.classifier import Classifier, accuracy
from convsim.lab.doubts import warn_of_plain_relu
from convsim.lab.files import locked
from convsim.lab.loading import Draw, in_order, labelled_batches
from convsim.lab.loggers import LoggerName, log_results, make_logger
from convsim.lab.measuring import failed_on
from convsim.lab.models import build_model, logits_of
from convsim.lab.processes import Processes, processes
from convsim.lab.records import Record
from convsim.lab.runs import Run
from convsim.lab.weights import load_weights
from convsim.redundancy import measure
from convsim.redundancy.evaluation import evaluating


class _ShuffledBatches(Sampler[Draw]):
    """Draws in an order that depends only on seed and epoch, so that a resume repeats it.

    Every process takes its share of each batch.
    """

    def __init__(self, count: int, run: Run, ours: Processes) -> None:
        self.count, self.batch_size, self.run, self.ours = count, run.recipe.batch_size, run, ours
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        epoch_seed = self.run.epoch_seed(self.epoch)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(epoch_seed))
        seed = epoch_seed if self.run.recipe.augment else None
        return (
            Draw(self.ours.share(batch.tolist()), seed) for batch in order.split(self.batch_size)
        )


def train(
    run: Run,
    folder: Path | None = None,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    loggers: Sequence[LoggerName] = (),
) -> tuple[nn.Module, Record]:
    """Train one network, resuming from the folder's checkpoint if there is one.

    Under torchrun the processes share every batch, and all return the same.

    Args:
        run: What to train.
        folder: Where to keep a checkpoint, made before the first epoch and after every epoch; None
            keeps none.
        progress: Called after every epoch.
        device: "cpu", "cuda", "mps", or "auto": an accelerator if there is one.
        loggers: Where scores go after every epoch, and the similarity of every layer at the end.

    Returns:
        The trained model, in ``eval()`` mode, and the run's record: its configuration, results,
        the settings read back from the live objects, and the environment.

    Raises:
        ConvsimError: If the folder's checkpoint belongs to another configuration or is damaged, or
            another process trains in the folder.
        NonFiniteError: If the loss stops being finite; the last good checkpoint stays.
        WriteError: If the folder cannot be written; the last checkpoint stays.
    """
    if loggers and folder is None:
        raise ConvsimError("Loggers need a folder to write to; got none.")
    to = [make_logger(name, folder) for name in loggers if folder is not None]
    with nullcontext() if folder is None or processes().rank else locked(folder):
        return _train(run, None if folder is None else folder / "last.ckpt", progress, device, to)


def _train(
    run: Run,
    checkpoint: Path | None,
    progress: Progress | None,
    device: str,
    loggers: Sequence[Logger],
) -> tuple[nn.Module, Record]:
    recipe, ours = run.recipe, processes()
    split = run.data.hold_out(recipe.validation, seed=0)
    resumed = checkpoint is not None and checkpoint.exists()
    finished = finished_epochs(checkpoint, run) if checkpoint and resumed else 0
    bookkeeping = Bookkeeping(run, checkpoint, progress, resumed)
    model = _model(run, bookkeeping)
    batches = _ShuffledBatches(len(split.train_labels), run, ours)
    batches.set_epoch(finished)  # Lightning sets it too late for the first epoch after a resume
    callbacks = [bookkeeping, *_regularizers(run, model, recipe.epochs * len(batches))]
    classifier = Classifier(model, recipe, split.train_images)
    with _as_a_library():
        trainer = Trainer(
            max_epochs=recipe.epochs, callbacks=callbacks, accelerator=device,
            precision=ARITHMETIC[recipe.precision].lightning,
            devices=ours.on_node, num_nodes=ours.count // ours.on_node,
            use_distributed_sampler=False, logger=list(loggers) or False,
            log_every_n_steps=1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            plugins=[WholeCheckpoints()],
        )  # fmt: skip
        try:
            trainer.fit(
                classifier,
                labelled_batches(split.train_images, split.train_labels, batches),
                in_order(split.test_images, split.test_labels),
                ckpt_path=checkpoint if resumed else None,
                weights_only=True,
            )  # fmt: skip
        except (ConvsimError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if checkpoint is None or not resumed or bookkeeping.steps:
                raise  # it is not the checkpoint's fault
            raise damaged(checkpoint, error) from error
    classifier.eval()

    result = _result(run, classifier, bookkeeping)
    log_results(loggers, result, trainer.global_step)
    record = {
        **run.record(result),
        "effective": _effective(trainer, classifier, callbacks) | bookkeeping.computed,
        "preprocessing": classifier.preprocessing().to_json(),
        "classes": len(run.data.classes),
    }
    return classifier.model, record


def _model(run: Run, bookkeeping: Bookkeeping) -> nn.Module:
    """Build a run's network as its first epoch finds it; Lightning resumes the weights later."""
    recipe, method = run.recipe, run.method
    torch.manual_seed(run.seed)
    model = build_model(
        recipe.model, classes=len(run.data.classes), channels=run.data.train_images.shape[1],
        width=recipe.width, norm=recipe.norm, activation=recipe.activation,
        pretrained=run.start.pretrained,
    )  # fmt: skip
    if bookkeeping.resumed:
        return model
    _require_fit(model, run)
    if run.start.weights is not None:
        load_weights(model, run.start.weights)
    if method.initialization is not None:
        started = time.perf_counter()
        initialize_(model, method.initialization, steps=method.initialization_steps)
        bookkeeping.initialization_seconds = time.perf_counter() - started
    return model


def _require_fit(model: nn.Module, run: Run) -> None:
    """Try the network on two images, before it is trained.

    Raises:
        ConvsimError: If it fails on them, or does not put out a number for each class.
    """
    shape, classes = tuple(run.data.train_images.shape[1:]), len(run.data.classes)
    images = torch.zeros(2, *shape)
    try:
        with evaluating(model), saying_why(model, images, [images]):
            outputs = logits_of(model(images))
    except ConvsimError as error:
        raise ConvsimError(f"The network does not fit {run.data.name!r}. {error}") from error
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        if torch.accelerator.is_available():
            return  # it may work there alone
        raise failed_on(model, shape, error) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] < classes:
        put_out = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConvsimError(
            f"The network must put out (N, {classes}), a number for each class of "
            f"{run.data.name!r}; of two images it puts out {put_out}."
        )


def _regularizers(run: Run, model: nn.Module, steps: int) -> list[RegularizerCallback]:
    """Make the callback that adds the method's penalty over so many steps, if it has one."""
    method = run.method
    if method.regularizer is None:
        return []
    warn_of_plain_relu(model)
    falls = None if method.falls is None else max(1, round(method.falls * steps))
    return [
        RegularizerCallback(method.regularizer, coefficient=method.coefficient, decay_steps=falls)
    ]


def _result(run: Run, classifier: Classifier, bookkeeping: Bookkeeping) -> Record:
    """Score and measure the trained network; a tuning run does not see test images."""
    curve = bookkeeping.curve
    result: Record = {
        "validation_accuracy": [scores["accuracy"] for scores in curve],
        "train_loss": [scores["train_loss"] for scores in curve],
        "penalty": [
            scores[key] for scores in curve for key in scores if key.startswith("convsim/")
        ],
        "seconds": sum(scores["seconds"] for scores in curve),
        "initialization_seconds": bookkeeping.initialization_seconds,
    }
    if run.test:
        result["test_accuracy"] = accuracy(classifier, run.data.test_images, run.data.test_labels)
        looked_at = run.data.to_measure(run.recipe.measured_images)
        report = measure(
            classifier, in_order(looked_at.test_images, looked_at.test_labels, batch_size=64)
        )
        result["measured"] = {
            "images": len(looked_at.test_labels),
            "classes": len(looked_at.test_labels.unique()),
        }
        result["similarity"] = {
            layer.name.removeprefix("model."): layer.similarity
            for layer in report if not math.isnan(layer.similarity)
        }  # fmt: skip
    return result


def _effective(trainer: Trainer, classifier: Classifier, callbacks: Sequence[Callback]) -> Record:
    """Read the settings back from the objects that were in effect."""
    (optimizer,) = trainer.optimizers
    group = optimizer.param_groups[0]
    regularizers = [c.regularizer for c in callbacks if isinstance(c, RegularizerCallback)]
    return {
        "optimizer": type(optimizer).__name__,
        **{
            key: group[key]
            for key in ("initial_lr", "momentum", "betas", "weight_decay")
            if key in group
        },
        "final_lr": group["lr"],
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "regularizer": [repr(regularizer).splitlines() for regularizer in regularizers],
    }


@contextmanager
def _as_a_library() -> Iterator[None]:
    """Keep Lightning's banners off the terminal, and pass Ctrl-C on as it is.

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
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
