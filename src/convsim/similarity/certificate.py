"""The certificate of Convolutional Similarity, on real inputs: its bound beside what it bounds.

|⟨F_i, F_j⟩| ≤ √CS(i,j) · ‖R‖ for the feature maps F of a layer at full zero padding and without
bias, R the autocorrelation of its input over the kernel's lags: docs/mathematics.md derives it.
Shape suffixes: N images, G groups, M filters and C channels of a group, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from convsim.kernels import KernelBank
from convsim.precision import divisor
from convsim.similarity.convolutional import Options, bank_matrix


def certified_cosines(bank: KernelBank, inputs_NCx: Tensor) -> tuple[Tensor, Tensor]:
    """Bound and measure |cosine| of every two maps that share their input, image by image.

    Args:
        bank: A layer's filters.
        inputs_NCx: Inputs of that layer, all channels of all groups.

    Returns:
        The bound √CS(i,j)·‖R‖ / (‖F_i‖‖F_j‖) and the measured |⟨F_i, F_j⟩| / (‖F_i‖‖F_j‖), both
        (N, G, M, M) in the filters' dtype; NaN where a map is zero. A bound of 1 or more tells
        nothing.

    Cost: a convolution, and C²·P products for each of the kernel's lags, by image.
    """
    groups = bank.filters.shape[0]
    # Both sides are free of scale: peaks of 1 keep fourth powers in range.
    x_NCx = _with_peak_1(inputs_NCx.to(bank.filters.dtype), inputs_NCx.dim() - 1)
    bank = bank.with_filters(_with_peak_1(bank.filters, bank.filters.dim() - 2))
    maps_NGMP = _full_convolution(bank, x_NCx).unflatten(1, (groups, -1)).flatten(3)
    norm_NGM = torch.linalg.vector_norm(maps_NGMP, dim=-1)
    product_NGMM = norm_NGM.unsqueeze(-1) * norm_NGM.unsqueeze(-2)
    measured_NGMM = (maps_NGMP @ maps_NGMP.mT).abs() / product_NGMM
    similarity_GMM = bank_matrix(bank, Options(scale="raw"))
    bound_NGMM = similarity_GMM.sqrt() * _autocorrelation_norm(bank, x_NCx) / product_NGMM
    bound_NGMM[product_NGMM == 0] = torch.nan  # as the measured value, 0/0, is
    return bound_NGMM, measured_NGMM


def _with_peak_1(values: Tensor, axes: int) -> Tensor:
    """Divide by the largest absolute value over the last axes, where it is not zero."""
    peak = values.abs().amax(tuple(range(-axes, 0)), keepdim=True)
    return values / divisor(peak)


def _full_convolution(bank: KernelBank, x_NCx: Tensor) -> Tensor:
    """Convolve at every position where the kernel meets the input, of those the stride allows."""
    axes = zip(bank.kernel, bank.stride, bank.dilation, strict=True)
    # A multiple of the stride, so that position 0 stays where it is; a transposed one needs none.
    padding = [0 if bank.transposed else s * ceil(d * (k - 1) / s) for k, s, d in axes]
    kind = "conv_transpose" if bank.transposed else "conv"
    convolve = getattr(nn.functional, f"{kind}{len(bank.kernel)}d")
    maps: Tensor = convolve(
        x_NCx, bank.to_weight(bank.filters), stride=bank.stride, padding=padding,
        dilation=bank.dilation, groups=bank.filters.shape[0],
    )  # fmt: skip
    return maps


def _autocorrelation_norm(bank: KernelBank, x_NCx: Tensor) -> Tensor:
    """Return ‖R‖: (N, G, 1, 1), over lags and, if the layer has a stride, over phases.

    R_φ[t] = Σ_p X[s·p + φ]·X[s·p + φ + d·t] for a convolution. A transposed one adds up maps s
    apart, so that R[t] = Σ_p X[p]·X[p + d·t/s] at the lags t where s divides d·t.
    """
    shifts, phases, steps = [], [], []
    axes = (bank.kernel, bank.stride, bank.dilation, bank.geometry.lag_steps)
    for k, s, d, q in zip(*axes, strict=True):
        lags = range(1 - k, k)
        # Distances in pixels of the input, and the phases at which taps read it.
        shifts.append(
            [d * t // s for t in lags if t % q == 0] if bank.transposed else [d * t for t in lags]
        )
        phases.append([0] if bank.transposed else sorted({d * u % s for u in range(k)}))
        steps.append(1 if bank.transposed else s)
    x_NGCx = x_NCx.unflatten(1, (bank.filters.shape[0], -1))
    size = x_NGCx.shape[3:]
    margin = [max(axis) for axis in shifts]
    padded = nn.functional.pad(x_NGCx, [m for m in reversed(margin) for _ in range(2)])
    total = x_NGCx.new_zeros(x_NGCx.shape[:2])
    for phase in product(*phases):
        if any(f >= n for f, n in zip(phase, size, strict=True)):
            continue  # the input is too small to have this phase
        sampled = (slice(f, None, s) for f, s in zip(phase, steps, strict=True))
        a = x_NGCx[..., *sampled]
        for shift in product(*shifts):
            starts = [m + t for m, t in zip(margin, shift, strict=True)]
            # The same positions, `shift` further: X[s·p + φ + t], zeros outside.
            window: Iterator[Any] = (
                slice(start + f, start + n, s)
                for start, f, n, s in zip(starts, phase, size, steps, strict=True)
            )
            b = padded[..., *window]
            total += (a.flatten(3) @ b.flatten(3).mT).square().sum((-2, -1))
    norm: Tensor = total.sqrt()
    return norm[..., None, None]
