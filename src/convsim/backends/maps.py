"""Feature maps at sampled positions on a CPU, in C++: ``maps.cpp``.

A training step finds its caches cold, so each of torch's operations costs several times what it
takes in a loop, and 256 positions are as many waits for memory. Here a layer's maps are read
by one call, all layers are penalised by one, and a gradient is added by one.

Shape suffixes: N images, M maps, S samples.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from convsim.backends.library import chosen_backend, library
from convsim.kernels.windows import spread

_OF_DTYPE = {
    torch.bfloat16: ("bfloat16", torch.float32),
    torch.float32: ("float32", torch.float32),
    torch.float64: ("float64", torch.float64),
}
"""What maps are called, and in what their samples are kept."""
_OF_SAMPLES = {torch.float32: "float32", torch.float64: "float64"}


class _Places(ctypes.Structure):
    _fields_ = [
        ("offsets", ctypes.c_void_p),
        ("samples", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("step", ctypes.c_int64),
    ]


class _Sampled(ctypes.Structure):
    _fields_ = [
        ("samples", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("maps", ctypes.c_int64),
        ("weight", ctypes.c_double),
        ("value", ctypes.c_double),
    ]


_ARGUMENTS = {
    "read": (ctypes.POINTER(_Places), ctypes.c_void_p, ctypes.c_void_p),
    "add": (ctypes.POINTER(_Places), ctypes.c_void_p, ctypes.c_void_p),
    "correlation": (ctypes.POINTER(_Sampled), ctypes.c_int64, ctypes.c_int),
}


class Places:
    """S positions of maps (N, M, …) of one shape, layout and dtype, in a CPU's memory."""

    def __init__(
        self, sizes: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, count: int
    ) -> None:
        name, self._dtype = _OF_DTYPE[dtype]
        over, apart = sizes[:1] + sizes[2:], strides[:1] + strides[2:]
        axes = torch.unravel_index(spread(count, prod(over)), over)
        offsets = [axis * by for axis, by in zip(axes, apart, strict=True)]
        self._offsets_S = torch.stack(offsets).sum(0)
        self._shape = (len(self._offsets_S), sizes[1])
        self._places = _Places(self._offsets_S.data_ptr(), *self._shape, strides[1])
        self._read, self._add = _call(f"read_{name}"), _call(f"add_{name}")

    def read(self, maps_NMx: Tensor) -> Tensor:
        """Read maps there: (S, M), in float32 at the least."""
        samples_SM = torch.empty(self._shape, dtype=self._dtype, device="cpu")
        self._read(self._places, maps_NMx.data_ptr(), samples_SM.data_ptr())
        return samples_SM

    def add_(self, gradient_NMx: Tensor, own_SM: Tensor) -> None:
        """Add samples' gradient to that of the maps."""
        own_SM = own_SM.to(self._dtype).contiguous()
        self._add(self._places, gradient_NMx.data_ptr(), own_SM.data_ptr())


def places_in(maps_NMx: Tensor, count: int) -> Places | None:
    """Find so many positions of maps; None where their numbers cannot be read as they lie."""
    if not _lies_plainly(maps_NMx):
        return None
    return _places(maps_NMx.shape, maps_NMx.stride(), maps_NMx.dtype, count)


def _lies_plainly(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and type(tensor) is Tensor
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and torch._C._len_torch_dispatch_stack() == 0  # which may record torch's operations
    )


@lru_cache(256)
@torch.inference_mode(False)
def _places(
    sizes: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, count: int
) -> Places | None:
    if dtype not in _OF_DTYPE or not _chosen():
        return None
    return Places(sizes, strides, dtype, count)


def _chosen() -> bool:
    return chosen_backend() in (None, "compiled") and library() is not None


def serve(samples: Sequence[Tensor]) -> bool:
    """Tell whether `squared_correlations` takes layers' samples."""
    dtype = samples[0].dtype
    if dtype not in _OF_SAMPLES or any(one.dtype != dtype for one in samples):
        return False
    return all(map(_lies_plainly, samples)) and _chosen()


def squared_correlations(
    samples: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Sum weight · mean squared correlation over layers' samples (S, M).

    Returns:
        The sum and its gradients: (1, S, M) of each layer.

    Cost: 1.5·S·M·min(S, M) multiplications.
    """
    samples = [samples_SM.contiguous() for samples_SM in samples]
    gradients = [torch.empty_like(samples_SM[None]) for samples_SM in samples]
    layers = (_Sampled * len(samples))()
    for layer, samples_SM, own_1SM, by in zip(layers, samples, gradients, weights, strict=True):
        layer.samples, layer.gradient = samples_SM.data_ptr(), own_1SM.data_ptr()
        (layer.count, layer.maps), layer.weight = samples_SM.shape, by
    dtype = samples[0].dtype
    call = _call(f"correlation_{_OF_SAMPLES[dtype]}")
    if call(layers, len(samples), torch.get_num_threads()):
        raise MemoryError("no memory for the correlations of a layer's samples")
    total = sum(layer.weight * layer.value for layer in layers)
    return torch.tensor(total, dtype=dtype, device="cpu"), gradients


@cache
def _call(name: str) -> Any:
    function = getattr(library(), name)
    function.argtypes = _ARGUMENTS[name.partition("_")[0]]
    function.restype = ctypes.c_int if name.startswith("correlation") else None
    return function
