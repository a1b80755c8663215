"""Convolutional Similarity on a CPU, in C++: ``similarity.cpp``.

Without a compiler this backend is not available.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from convsim.backends.library import library
from convsim.backends.problem import Job, half_classes, merges_taps
from convsim.similarity import Options, pair_weight

_MAX_TAPS = 256  # beyond, Fourier transforms cost less: benchmarks/large_kernels.py


class _Layer(ctypes.Structure):
    _fields_ = [
        ("filters", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("members", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("taps", ctypes.c_int64),
        ("filter_stride", ctypes.c_int64 * 4),
        ("gradient_stride", ctypes.c_int64 * 4),
        ("pair_class", ctypes.c_void_p),
        ("multiplicity", ctypes.c_void_p),
        ("classes", ctypes.c_int64),
        ("weight", ctypes.c_double),
        ("factor", ctypes.c_double),
        ("value", ctypes.c_double),
    ]


def serves(job: Job, options: Options) -> bool:
    """Tell whether this backend can take a layer."""
    return (
        job.bank.filters.device.type == "cpu"
        and job.bank.geometry.taps <= _MAX_TAPS
        and merges_taps(job.bank.filters)
        and (job.gradient is None or merges_taps(job.gradient))
        and library() is not None
    )


def add_gradients_(jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity; return the similarities."""
    layers = (_Layer * len(jobs))(*(_layer(job, factor, options) for job in jobs))
    dtype = jobs[0].bank.filters.dtype
    name = "similarity_float64" if dtype == torch.float64 else "similarity_float32"
    getattr(library(), name)(
        layers,
        ctypes.c_int64(len(jobs)),
        options.channels == "matched",
        options.scale == "unit",
        options.pairs == "adjacent",
        torch.get_num_threads(),
    )
    return list(torch.tensor([layer.value for layer in layers], dtype=dtype).unbind())


def _layer(job: Job, factor: float, options: Options) -> _Layer:
    bank, gradient = job
    classes = half_classes(bank.geometry)
    groups, members, channels, *_ = bank.filters.shape
    filters_GMCn = bank.filters.flatten(3)
    gradient_GMCn = None if gradient is None else gradient.flatten(3)
    return _Layer(
        filters=filters_GMCn.data_ptr(),
        gradient=None if gradient_GMCn is None else gradient_GMCn.data_ptr(),
        groups=groups,
        members=members,
        channels=channels,
        taps=filters_GMCn.shape[3],
        filter_stride=filters_GMCn.stride(),
        gradient_stride=(filters_GMCn if gradient_GMCn is None else gradient_GMCn).stride(),
        pair_class=classes.pair_class.data_ptr(),
        multiplicity=classes.multiplicity.data_ptr(),
        classes=classes.count,
        weight=pair_weight(bank, options),
        factor=factor,
    )
