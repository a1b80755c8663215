"""Value and gradient of one layer by one backend, against float64 on the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from convsim import ConvolutionalSimilarity, ConvsimWarning, Regularizer, convolutional_similarity

OPTIONS = [
    dict(zip(("pairs", "channels", "scale", "reduction"), values, strict=True))
    for values in product(
        ("all", "adjacent"), ("crossed", "matched"), ("unit", "raw"), ("mean", "sum")
    )
]
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3×3": lambda: nn.Conv2d(16, 24, 3),
    "3×3, 256 of 256": lambda: nn.Conv2d(256, 256, 3),
    "3×3, 1,100 filters": lambda: nn.Conv2d(20, 1100, 3),
    "3×3, stride 2": lambda: nn.Conv2d(70, 33, 3, stride=2),
    "3×3, 4 groups": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "3×3, depthwise, 2 filters a channel": lambda: nn.Conv2d(12, 24, 3, groups=12),
    "1×1": lambda: nn.Conv2d(24, 40, 1),
    "1×1, stride 2": lambda: nn.Conv2d(24, 40, 1, stride=2),
    "5×5, stride 2": lambda: nn.Conv2d(300, 20, 5, stride=2),
    "7×7, stride 2": lambda: nn.Conv2d(3, 64, 7, stride=2),
    "9×9, matched by Fourier": lambda: nn.Conv2d(3, 6, 9),
    "17×17, all by Fourier": lambda: nn.Conv2d(2, 5, 17),
    "1-d": lambda: nn.Conv1d(6, 9, 5, stride=3),
    "3-d": lambda: nn.Conv3d(4, 6, (2, 3, 2), stride=(1, 2, 1)),
    "3×3, stride 3, dilation 2": lambda: nn.Conv2d(6, 9, 3, stride=3, dilation=2),
    "transposed, 4×4, stride 2": lambda: nn.ConvTranspose2d(8, 12, 4, stride=2),
    "transposed, 2 groups": lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda w: w,
    "channels last": lambda w: w.to(memory_format=torch.channels_last),
    "every other element": lambda w: w.repeat_interleave(2, dim=-1)[..., ::2],
}
EXACT = 5e-5
"""How far float32 may be off, relative, with sums of thousands; norms are of like size."""


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Take one backend wherever it serves a layer."""
    before = os.environ.get("CONVSIM_BACKEND")
    os.environ["CONVSIM_BACKEND"] = backend
    try:
        yield
    finally:
        del os.environ["CONVSIM_BACKEND"]
        if before is not None:
            os.environ["CONVSIM_BACKEND"] = before


def reference(layer: Any, options: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Compute value and gradient by autograd through the readable formula: float64, CPU."""
    weight = layer.weight.detach().double().cpu().contiguous().requires_grad_()
    value = convolutional_similarity(
        weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups,
        transposed=layer.transposed, **options,
    )  # fmt: skip
    if not value.requires_grad:
        return value, torch.zeros_like(weight)
    return value.detach(), torch.autograd.grad(value, weight)[0]


def errors(layer: Any, options: dict[str, str], backend: str) -> tuple[float, float]:
    """Return the relative errors of value and gradient of one layer."""
    expected, expected_gradient = reference(layer, options)
    layer.weight.grad = torch.zeros_like(layer.weight)  # of the weight's own strides
    with warnings.catch_warnings(), forced(backend):
        warnings.simplefilter("error", ConvsimWarning)
        try:
            regularizer = Regularizer(layer, ConvolutionalSimilarity(**options), coefficient=1.0)
        except ConvsimWarning:  # it cannot act on this layer
            return 0.0, 0.0
        value = regularizer.backward_().double().cpu()
    gradient = layer.weight.grad.double().cpu()
    # A gradient that nearly vanishes is judged by what it is the difference of.
    scale = max(expected_gradient.norm().item(), 0.1 * expected.item() / layer.weight.norm().item())
    off = (gradient - expected_gradient).norm().item() / max(scale, 1e-300)
    return abs(value.item() / expected.item() - 1), off


def one_layer(
    build: Callable[[], nn.Module],
    backend: str,
    options: list[dict[str, str]],
    device: torch.device,
) -> dict[str, Any]:
    """Compare one layer on every option; fail where an error is too large."""
    torch.manual_seed(0)
    layer = build().to(device)
    found = {" ".join(each.values()): errors(layer, each, backend) for each in options}
    return judged({name: max(both) for name, both in found.items()}, EXACT)


def judged(found: dict[str, float], limit: float) -> dict[str, Any]:
    """Describe the largest error and where it is.

    Raises:
        AssertionError: If it is above the limit, or no number.
    """
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else 1e300)
    described = {"worst": found[worst], "at": worst, "checks": len(found), "limit": limit}
    if not found[worst] <= limit:
        raise AssertionError(f"too far off: {described}; all: {found}")
    return described


def layouts(backend: str, device: torch.device, rehearse: bool) -> dict[str, Any]:
    """Compare filters that lie in memory in other orders."""
    found = {}
    for name, lay_out in LAYOUTS.items():
        for options in OPTIONS[:: 12 if rehearse else 2]:
            torch.manual_seed(0)
            layer: Any = nn.Conv2d(20, 6, 3).to(device)
            layer.weight = nn.Parameter(lay_out(layer.weight.detach()))
            where = f"{name}, {' '.join(options.values())}"
            found[where] = max(errors(layer, options, backend))
    return judged(found, EXACT)


def hard(backend: str, device: torch.device) -> dict[str, Any]:
    """Take a zero filter, norms from 1e-20 to 1e20, norms far apart, and NaN."""
    found = {}
    for name, change in {
        "zero filter": lambda w: w[1].zero_(),
        "tiny": lambda w: w.mul_(1e-20),
        "huge": lambda w: w.mul_(1e20),
        "far apart": lambda w: w[::2].mul_(1e-6),
    }.items():
        for channels in ("crossed", "matched"):
            torch.manual_seed(0)
            layer = nn.Conv2d(20, 6, 3).to(device)
            with torch.no_grad():
                change(layer.weight)
            options = {
                "pairs": "all", "channels": channels, "scale": "unit", "reduction": "mean",
            }  # fmt: skip
            found[f"{name}, {channels}"] = max(errors(layer, options, backend))
    layer = nn.Conv2d(20, 6, 3).to(device)
    with torch.no_grad():
        layer.weight[2, 3, 1, 1] = torch.nan
    with forced(backend):
        value = Regularizer(layer, ConvolutionalSimilarity(), coefficient=1.0).backward_()
    if value.isfinite():
        raise AssertionError(f"a NaN among the weights gave the number {value.item()}")
    return judged(found, EXACT)
