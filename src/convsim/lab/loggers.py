"""Where a run's scores go while it trains, beside its own record."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from convsim.errors import MissingExtraError, require
from convsim.lab.records import Record

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class LoggerName(StrEnum):
    """A logger of Lightning's; all but the first need the package of their name."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


_CLASSES = {
    LoggerName.CSV: "CSVLogger",
    LoggerName.TENSORBOARD: "TensorBoardLogger",
    LoggerName.WANDB: "WandbLogger",
}


def make_logger(name: LoggerName, folder: Path) -> Logger:
    """Make Lightning's logger of that name, which writes to a folder below this one.

    Raises:
        MissingExtraError: If the package that it needs is not installed.
    """
    loggers = require("lightning.pytorch.loggers", "lab")
    try:
        made: Logger = getattr(loggers, _CLASSES[name])(save_dir=str(folder), name=name.value)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--logger {name.value} needs the package {name.value}: pip install {name.value}"
        ) from error
    return made


def log_results(loggers: Sequence[Logger], result: Record, step: int) -> None:
    """Log the final accuracy and every layer's similarity, and finish."""
    scalars = {f"convsim/similarity/{k}": v for k, v in result.get("similarity", {}).items()}
    if "test_accuracy" in result:
        scalars["test_accuracy"] = result["test_accuracy"]
    for logger in loggers:
        logger.log_metrics(scalars, step)
        logger.save()
        logger.finalize("success")
