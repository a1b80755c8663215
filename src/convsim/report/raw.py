"""A tensor's elements as bytes, without NumPy, which torch may lack."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's elements, in order and little-endian."""
    values = tensor.cpu().contiguous().flatten()
    if sys.byteorder == "big":
        values = values.view(torch.uint8).view(-1, tensor.itemsize).flip(1)
    return ctypes.string_at(values.data_ptr(), values.nbytes)
