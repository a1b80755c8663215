"""Keep the user's reduced precision out of convsim's own sums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Multiply in a tensor's own precision inside a block, on its device.

    Autocast would multiply matrices in half precision; TF32 and its like
    (`torch.set_float32_matmul_precision`) keep 10 bits of a float32, or 7. Under `torch.compile`,
    which cannot trace such a switch, only autocast is kept out.
    """
    kind = tensor.device.type
    known = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if known else nullcontext():
        if torch.compiler.is_compiling():
            yield
            return
        switches = _switches(kind)
        before = [getattr(owner, name) for owner, name, _ in switches]
        try:
            for owner, name, full in switches:
                setattr(owner, name, full)
            yield
        finally:
            for (owner, name, _), value in zip(switches, before, strict=True):
                setattr(owner, name, value)


def _switches(kind: str) -> list[tuple[Any, str, Any]]:
    """List where torch keeps the precision of float32 products, with the value that is full."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cuda.matmul, "fp32_precision"):  # torch < 2.9
        return [(owner, "allow_tf32", False) for owner in (cuda.matmul, cudnn) if kind == "cuda"]
    owners: dict[str, list[Any]] = {
        "cuda": [cuda.matmul, cudnn.conv],  # type: ignore[attr-defined]
        "cpu": [mkldnn.matmul, mkldnn.conv],  # type: ignore[attr-defined]
    }
    return [(owner, "fp32_precision", "ieee") for owner in owners.get(kind, [])]
