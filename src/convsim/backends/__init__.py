"""Convolutional Similarity and its gradient, by the fastest means at hand.

One question (`problem`), several answers, each checked against `convsim.similarity`: ``compiled``
(C++, on a CPU with a compiler) and ``eager`` (torch alone, anywhere). The environment variable
``CONVSIM_BACKEND=eager`` keeps to torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from convsim.backends import compiled, eager
from convsim.backends.problem import Options
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank

_BACKENDS = {"compiled": compiled, "eager": eager}  # the first that serves a layer takes it


@torch.no_grad()
def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each layer's similarity to its tensor in `gradients`, in place.

    Args:
        banks: The layers.
        gradients: For each layer, (G, M, C, k) of its filters' dtype, of any strides; None to
            compute the value alone.
        factors: For each layer, what its gradient is multiplied by.
        options: The form of similarity.

    Returns:
        For each layer, its similarity, without the factor.
    """
    values: list[Tensor | None] = [None] * len(banks)
    left = list(range(len(banks)))
    for backend in _chosen():
        for dtype in (torch.float32, torch.float64):
            mine = [
                i
                for i in left
                if banks[i].filters.dtype == dtype and backend.serves(banks[i], gradients[i])
            ]
            if mine:
                left = [i for i in left if i not in mine]
                found = backend.add_gradients_(
                    [banks[i] for i in mine],
                    [gradients[i] for i in mine],
                    [factors[i] for i in mine],
                    options,
                )
                for i, value in zip(mine, found, strict=True):
                    values[i] = value
    return [value for value in values if value is not None]


def _chosen() -> list[ModuleType]:
    name = os.environ.get("CONVSIM_BACKEND")
    if name is None:
        return list(_BACKENDS.values())
    if name not in _BACKENDS:
        raise ConvsimError(
            f"CONVSIM_BACKEND must be one of {', '.join(map(repr, _BACKENDS))}; got {name!r}."
        )
    return [_BACKENDS[name], eager]
