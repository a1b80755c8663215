"""Load trained weights into a model, without unpickling anything but tensors."""

from __future__ import annotations

import mmap
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsim import strict_json
from convsim.errors import ConvsimWarning, DataError

_RAW = ("state_dict", "model_state_dict", "model_state", "model", "net")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_DEEPEST = 5
"""How many wrappers and names, one inside the other, are searched."""
# With these, a few bytes of a pickle could fill any memory. Tensors and plain values need neither.
_HUNGRY = (b"\nbytearray\n", b"_codecs\nencode\n")


def load_weights(model: nn.Module, path: Path, entry: str | None = None) -> None:
    """Load a checkpoint into a model, in place.

    Args:
        model: The model.
        path: A ``.safetensors`` file, or a checkpoint of ``torch.save`` with tensors and plain
            values alone: a state dict, or one under a name that training loops use, such as
            "state_dict", "model" or, of averaged weights, "state_dict_ema" and "ema". Prefixes that
            DataParallel, Lightning and torch.compile put before names are dropped, and so are
            entries without such a prefix. Counters of batches that old checkpoints lack keep their
            values.
        entry: The name in the checkpoint whose weights are taken. If None, raw weights are
            preferred to averaged ones, with a warning if there are both.

    Raises:
        DataError: If the file is missing, damaged or unreadable, would run code when loaded, has no
            such entry, or holds other names, shapes or kinds of numbers than the model; the model
            is then as it was.
    """
    tensors = _read(path, entry)
    wanted = model.state_dict()
    counters = {name: n for name, n in wanted.items() if name.endswith("num_batches_tracked")}
    for stripped in _without_wrappers(tensors):
        # torch's own loading takes checkpoints from before there were counters, too.
        stripped = counters | stripped  # noqa: PLW2901
        if stripped.keys() == wanted.keys():
            break
    else:
        missing, extra = sorted(wanted.keys() - tensors), sorted(tensors.keys() - wanted.keys())
        raise DataError(
            f"{path} has other weights than the model: {_some(missing)} missing, {_some(extra)} "
            "unknown to the model. Give the model's own options, such as --classes or --width."
        )
    for name, value in wanted.items():
        if not _fits(stripped[name], value):
            raise DataError(
                f"{path}: {name!r} must be a dense tensor of {value.dtype} or the like, as the "
                f"model's; it is {stripped[name].dtype}, {stripped[name].layout}, on "
                f"{stripped[name].device}. Save the model's own state dict."
            )
        if stripped[name].shape != value.shape:
            raise DataError(
                f"{path}: {name!r} has shape {tuple(stripped[name].shape)}, the model's "
                f"{tuple(value.shape)}. Give the model's own options, such as --classes or --width."
            )
    model.load_state_dict(stripped)


def read_checkpoint(path: Path) -> Any:
    """Read tensors and plain values from a file of ``torch.save``.

    ``torch.load`` alone would not run code either, but it checks no checksum, and a small file
    could make it use any amount of memory.

    Raises:
        Exception: Of many kinds, if the file is damaged or holds anything else.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(name) >= 0 for name in _HUNGRY):
            raise ValueError("neither tensors nor plain values")
        is_zip, size = content[:4] == b"PK\3\4", len(content)
        if not is_zip and content[:1] != b"\x80":
            raise ValueError("no file of torch.save")
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ValueError("compressed records, which torch.save does not write")
            names = {record.filename for record in records}
            if len(names) < len(records) or sum(record.file_size for record in records) > size:
                raise ValueError("records that come twice or overlap")
            if spoiled := archive.testzip():
                raise ValueError(f"a wrong checksum of {spoiled!r}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - needs the lab extra

    tensors = load_file(path)
    with path.open("rb") as file:  # refuses a name that comes twice: the last would win
        strict_json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return tensors


def _fits(value: Tensor, wanted: Tensor) -> bool:
    """Tell whether a tensor can be copied without losing what it means."""
    kinds = [(x.dtype.is_floating_point, x.dtype.is_complex) for x in (value, wanted)]
    plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    return plain and value.device.type == "cpu" and kinds[0] == kinds[1]


def _without_wrappers(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the entries as they are, then those below each prefix of wrappers that there is."""
    level = [tensors]
    for _ in range(_DEEPEST):
        yield from level
        level = [
            {name.removeprefix(wrapper): value for name, value in below}
            for entries in level
            for wrapper in _WRAPPERS
            if (below := [item for item in entries.items() if item[0].startswith(wrapper)])
        ]


def _read(path: Path, entry: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"There is no weights file {str(path)!r}. Check the path.")
    try:
        content = (_read_safetensors if path.suffix == ".safetensors" else read_checkpoint)(path)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as weights alone ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). Copy it again, "
            "or save the state dict with safetensors.torch.save_file."
        ) from error
    for _ in range(_DEEPEST):
        if (inner := _inner(content, path, entry)) is None:
            break
        content, entry = inner, None
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DataError(f"{path} holds no state dict: save model.state_dict().")
    return dict(content)


def _inner(content: Any, path: Path, entry: str | None) -> Any:
    """Return what a checkpoint holds under an entry's name; None if it is a state dict itself."""
    nests = [
        name
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Mapping) and isinstance(name, str)
    ]
    if entry is not None:
        if entry not in nests:
            raise DataError(
                f"{path} has no weights under {entry!r}; what it has under a name is "
                f"{_some(nests)}. Leave the name out, or give another."
            )
        return content[entry]
    found = [name for name in (*_RAW, *_AVERAGED) if name in nests]
    if not found:
        return None
    averaged = [name for name in found if name in _AVERAGED]
    if averaged and averaged != found:
        warnings.warn(
            f"{path} has raw weights, under {found[0]!r}, and averaged ones, under "
            f"{averaged[0]!r}; the raw ones are taken. For the others, give --entry {averaged[0]}.",
            ConvsimWarning,
            stacklevel=2,
        )
    return content[found[0]]


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3])) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
