"""Inputs for a first look at a network without data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convsim.errors import ConvsimError

COUNT = 32


def noise(shape: Sequence[int]) -> list[Tensor]:
    """Draw one batch of standard normal noise, (32, *shape) float32, the same every time.

    Raises:
        ConvsimError: If the shape is no sequence of positive integers, channels first.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConvsimError(
            "input_size is the shape of one input, channels first, such as (3, 224, 224); got "
            f"{shape!r}."
        )
    return [torch.randn(COUNT, *sizes, generator=torch.Generator().manual_seed(0))]
