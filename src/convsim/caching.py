"""Small tables, made once and kept in a way that serves every mode and stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_Make = TypeVar("_Make", bound=Callable[..., Any])
_CAPTURED: list[Any] = []  # what CUDA graphs read, or copy from, at every replay


def kept(maxsize: int) -> Callable[[_Make], _Make]:
    """Keep the results of a function of hashable arguments, the `maxsize` used last.

    Where tensors are not real ones, as under FakeTensorMode, `torch.export`, `torch.compile` or
    `torch.func`, the function runs anew: a result from there cannot be used elsewhere, nor one from
    elsewhere there. A tensor on a GPU is marked for every stream that takes it.
    """

    def decorate(make: _Make) -> Any:
        @lru_cache(maxsize)
        @torch.inference_mode(False)  # an inference tensor could not be saved for a backward pass
        def kept_make(*key: Any) -> Any:
            return make(*key)

        @wraps(make)
        def look_up(*key: Any) -> Any:
            if not tensors_are_real():
                return make(*key)
            found = kept_make(*key)
            _mark_for_stream(found)
            return found

        return look_up

    return decorate


def tensors_are_real(like: Tensor | None = None) -> bool:
    """Tell whether tensors have memory of their own: not while torch traces or transforms.

    Args:
        like: A tensor that was made under the same circumstances, which spares making one.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return type(torch.empty(0, device="cpu") if like is None else like) is Tensor


def _mark_for_stream(found: Any) -> None:
    """Keep the memory of dropped tables until no stream reads it, for a captured graph for ever."""
    tables = found if isinstance(found, tuple) else ()
    on_gpu = [one for one in tables if isinstance(one, Tensor) and one.is_cuda]
    for table in on_gpu:
        table.record_stream(torch.cuda.current_stream(table.device))
    if on_gpu and _capturing(on_gpu[0].device):
        _CAPTURED.append(on_gpu)


_ON_STREAMS: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}


def kept_on_stream(
    make: Callable[[tuple[Any, ...]], tuple[Tensor, ...]],
    described: tuple[Any, ...],
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Make tables once and send them to a device, from pinned memory without waiting for it.

    Each stream has its own: another could read a copy before it has arrived, or after it is gone. A
    captured graph may be replayed at any time. So what it reads is never freed, and what it copies
    is not shared, because it is there only after a replay.
    """
    key = (make, described, device, _stream(device))
    found = _ON_STREAMS.get(key)
    capturing = _capturing(device)
    if found is None:
        found = sources = make(described)
        if device.type == "cuda":
            sources = tuple(table.pin_memory() for table in sources)
            found = tuple(table.to(device, non_blocking=True) for table in sources)
        if capturing:
            _CAPTURED.append(sources)
        else:
            _ON_STREAMS[key] = found
            if len(_ON_STREAMS) > 256:
                del _ON_STREAMS[next(iter(_ON_STREAMS))]
    if capturing:
        _CAPTURED.append(found)
    return found


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch._C._cuda_getCurrentRawStream(index)
