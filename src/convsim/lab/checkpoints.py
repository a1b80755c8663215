"""What a run keeps on disk while it trains: whole checkpoints, which hold its curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import nn

from convsim.errors import ConvsimError
from convsim.lab.arithmetic import FirstMaps
from convsim.lab.files import locked, replacing
from convsim.lab.records import Record
from convsim.lab.runs import Run
from convsim.lab.weights import read_checkpoint

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with its number from 1, how many there are, and its scores."""

_SCORES = ("accuracy", "train_loss", "seconds")


class WholeCheckpoints(TorchCheckpointIO):
    """A new checkpoint replaces the last one in one step, or leaves it as it is."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the last one, then rename."""
        content = BytesIO()
        torch.save(checkpoint, content)  # in memory: to a file, torch hides what the disk says
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())


class Bookkeeping(Callback):
    """Seed every epoch, save before the first and after each, keep the curve."""

    def __init__(
        self, run: Run, checkpoint: Path | None, progress: Progress | None, resumed: bool
    ) -> None:
        self.run, self.checkpoint, self.progress, self.resumed = run, checkpoint, progress, resumed
        self.curve: list[dict[str, float]] = []
        self.initialization_seconds = 0.0
        self.computed: dict[str, str] = {}
        self.first_maps: FirstMaps | None = None
        self.started = 0.0
        self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before the first epoch; see in what numbers the first batch is computed."""
        self.first_maps = FirstMaps(pl_module)
        if self.checkpoint is not None and not self.resumed:
            trainer.save_checkpoint(self.checkpoint)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the epoch, so that a resume repeats it."""
        if batch_idx == 0:  # not at the epoch's start: making the loader's iterator draws a number
            seed = self.run.epoch_seed(trainer.current_epoch)
            torch.manual_seed(seed * trainer.world_size + trainer.global_rank)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give all processes the first one's statistics of normalization layers."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_train_batch_end(self, *_: Any) -> None:
        """Count the step."""
        self.steps += 1
        if self.first_maps is not None:
            self.computed, self.first_maps = self.first_maps.found, None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the scores, save, report."""
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        scores["seconds"] = time.perf_counter() - self.started
        self.curve.append(scores)
        if self.checkpoint is not None:
            trainer.save_checkpoint(self.checkpoint)
        if self.progress is not None:
            self.progress(len(self.curve), self.run.recipe.epochs, scores)

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps of this run."""
        return {
            "configuration": self.run.configuration(),
            "curve": self.curve,
            "initialization_seconds": self.initialization_seconds,
            "computed": self.computed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curve = list(state["curve"])
        self.initialization_seconds = state["initialization_seconds"]
        self.computed = state.get("computed", {})  # checkpoints of earlier versions have none


def save_result(network: nn.Module, record: Record, folder: Path) -> None:
    """Write a trained network's model.safetensors and its record.json, each whole.

    Raises:
        ConvsimError: If another process owns the folder.
        WriteError: If the folder cannot be written.
    """
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    files = {
        "model.safetensors": save(tensors),
        "record.json": json.dumps(record, indent=1).encode(),
    }
    with locked(folder):
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)


def finished_epochs(path: Path, run: Run) -> int:
    """Count the epochs of a run's checkpoint, refusing one of another run."""
    try:
        state = read_checkpoint(path)
        bookkeeping = state["callbacks"][Bookkeeping.__qualname__]
        found, curve = _options(bookkeeping["configuration"]), bookkeeping["curve"]
        for scores in curve:
            math.fsum([*scores.values(), *map(scores.__getitem__, _SCORES)])  # all are numbers
        float(bookkeeping["initialization_seconds"])
        (_,), (_,) = state["optimizer_states"], state["lr_schedulers"]
        if state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] != len(curve):
            raise ValueError("more or fewer epochs than it says")  # noqa: TRY301
    except Exception as error:
        raise damaged(path, error) from error
    wanted = _options(run.configuration())
    if other := [key for key in found | wanted if found.get(key) != wanted.get(key)]:
        told = "; ".join(f"{key} {found.get(key)}, not {wanted.get(key)}" for key in other)
        raise ConvsimError(
            f"{path} belongs to a run with another configuration: {told}. Resume with the options "
            "it was started with, or choose another folder."
        )
    return len(curve)


def _options(configuration: Record, prefix: str = "") -> Record:
    """Flatten a configuration: {"recipe": {"lr": 0.1}} to {"recipe.lr": 0.1}."""
    flat: Record = {}
    for name, value in configuration.items():
        inner = isinstance(value, dict)
        flat |= _options(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat


def damaged(path: Path, error: Exception) -> ConvsimError:
    """Say that a checkpoint cannot be read, and what to do."""
    return ConvsimError(
        f"{path} is not a readable checkpoint of convsim ({type(error).__name__}: "
        f"{error}). Delete it to start this run anew."
    )
