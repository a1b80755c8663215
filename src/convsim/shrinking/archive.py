"""A shrunk network in a folder, and back; no pickle."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from convsim.errors import ConvsimError, DataError, WriteError, require
from convsim.shrinking.plan import Plan, require_axes

WEIGHTS, PLAN, REPORT = "model.safetensors", "plan.json", "report.json"


def save_network(model: nn.Module, plan: Plan, folder: Path) -> None:
    """Write a shrunk network's weights and its plan into a folder, which is made.

    Raises:
        MissingExtraError: If safetensors is not installed.
    """
    files = require("safetensors.torch", "shrink")
    if folder.exists() and not folder.is_dir():
        raise WriteError(f"{folder} is a file. Give a folder, which is made if there is none.")
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, because tensors that share memory are refused.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in _state(model)}
    files.save_file(state, folder / WEIGHTS)
    (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")


def load_shrunk(model: nn.Module, folder: str | Path) -> nn.Module:
    """Rebuild a shrunk network from what `Shrunk.save` wrote.

    Args:
        model: The original network, of the same class and options; its weights do not matter, and
            it is left as it is.
        folder: The folder.

    Returns:
        A copy of the model that is cut and has the saved weights, on the model's device and in its
        modes: call ``eval()`` before it is used.

    Raises:
        DataError: If a file is missing or damaged, or the weights are another network's.
        ConvsimError: If the plan was made for another network, or the arguments are no model and
            folder.
        MissingExtraError: If safetensors is not installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from convsim import shrink
        >>> def network():
        ...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> shrunk = shrink(network(), [torch.randn(32, 3, 16, 16)], channels=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shrunk.save(folder)
        ...     load_shrunk(network(), folder)[0].out_channels
        4
    """
    if not isinstance(model, nn.Module) or not isinstance(folder, str | Path):
        raise ConvsimError(
            "load_shrunk(model, folder) takes the original network, then the folder; got "
            f"{type(model).__name__} and {type(folder).__name__}."
        )
    folder = Path(folder)
    plan_file = folder / PLAN
    if not plan_file.is_file():
        raise DataError(f"There is no plan {str(plan_file)!r}. Give the folder of Shrunk.save.")
    try:
        plan = Plan.from_json(plan_file.read_bytes())
    except DataError as error:
        raise DataError(f"{plan_file}: {error}") from error
    plan.require_shapes(model)
    require_axes(model, plan)
    small = plan.apply(model)
    state = _read(folder / WEIGHTS)
    wanted = dict(_state(small))
    differing = [n for n in sorted({*state, *wanted}) if _shape(state, n) != _shape(wanted, n)]
    if differing:
        name = differing[0]
        raise DataError(
            f"{folder / WEIGHTS} holds the weights of another network than its plan: {name!r} has "
            f"shape {_shape(state, name)} there and should have {_shape(wanted, name)}. Keep the "
            "two files of one Shrunk.save together."
        )
    small.load_state_dict(state)
    return small


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "none"


def _read(path: Path) -> dict[str, Tensor]:
    files = require("safetensors.torch", "shrink")
    if not path.is_file():
        raise DataError(f"There is no weights file {str(path)!r}. Give the folder of Shrunk.save.")
    try:
        state: dict[str, Tensor] = files.load_file(path)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from error
    return state
