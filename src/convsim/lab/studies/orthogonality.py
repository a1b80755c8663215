"""Does minimising the cosine of two kernels lower the similarity of their feature maps?

⟨F_i, F_j⟩ = Σ_t (K_i ⋆ K_j)[t] · (X ⋆ X)[t] over the kernel's lags, and kernel orthogonality
controls the term t = 0 alone. The other terms are what is left, of either sign.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from convsim.lab.studies.draws import INPUTS, Setting, draw, feature_maps, mean_cosine
from convsim.lab.studies.figures import change_figure
from convsim.lab.studies.minimization import CHANGE, change, minimize
from convsim.lab.studies.study import Row, Study

_KERNELS = ("uniform", "normal")

CASES = (
    *(Setting(inputs=i, kernels=k) for i in INPUTS for k in _KERNELS),
    *(Setting(inputs="photographs", kernels="normal", size=s) for s in (3, 5, 7, 11, 15)),
    *(
        Setting(inputs=i, kernels=k, size=3, axes=2)
        for i in ("uniform", "photographs")
        for k in _KERNELS
    ),
    *(
        Setting(inputs="photographs", kernels="normal", size=3, axes=2, channels=c)
        for c in (3, 8)
    ),
    *(
        Setting(inputs="photographs", kernels="normal", padding=p)
        for p in ("same", "full", "circular")
    ),
)  # fmt: skip


def answer(case: Setting, draws: int) -> Row:
    """Minimise cosine² of the kernels; compare |cosine| of the feature maps before and after."""
    filters, inputs = draw(case, draws)
    after = minimize(filters, "cosine")
    maps = [feature_maps(w, inputs, case.padding) for w in (filters, after)]
    kernels = [mean_cosine(w.flatten(2)) for w in (filters, after)]
    lag_0 = _lag_0_share(filters, inputs) if case.channels == 1 else float("nan")
    return change(*map(mean_cosine, maps)) | {
        "kernels_before": kernels[0].mean().item(),
        "kernels_after": kernels[1].mean().item(),
        "lag_0": None if math.isnan(lag_0) else lag_0,
    }


def _lag_0_share(filters_GMCk: Tensor, inputs_GCx: Tensor) -> float:
    """Return the median over draws of the lag-0 term's share in Σ_t |(K_i ⋆ K_j)[t]·(X ⋆ X)[t]|.

    Of the first two filters and one channel, with full zero padding, where the theorem is exact.
    """
    first, second = filters_GMCk[:, 0], filters_GMCk[:, 1]
    reach = filters_GMCk.shape[-1] - 1
    kernels_GP = _cross_correlation(first, second, reach)
    terms_GP = (kernels_GP * _cross_correlation(inputs_GCx, inputs_GCx, reach)).abs()
    middle = terms_GP.shape[1] // 2
    return (terms_GP[:, middle] / terms_GP.sum(1)).median().item()


def _cross_correlation(a_GCx: Tensor, b_GCx: Tensor, reach: int) -> Tensor:
    """Cross-correlate the one channel of every draw over lags −reach…reach on each axis: (G, P)."""
    axes = a_GCx.dim() - 2
    convolve = getattr(nn.functional, f"conv{axes}d")
    lags: Tensor = convolve(b_GCx.transpose(0, 1), a_GCx, padding=reach, groups=len(a_GCx))
    return lags[0].flatten(1)


COLUMNS = (
    ("inputs", "inputs", ""), ("kernels", "kernels", ""), ("size", "size", ""),
    ("axes", "axes", ""), ("channels", "channels", ""), ("padding", "padding", ""),
    ("kernel cosine", "kernels_before", ".3f"), ("after", "kernels_after", ".3f"),
    ("map cosine", "before", ".3f"), ("after", "after", ".3f"), ("change", "relative", "+.0%"),
    ("rises in", "rises", ".0%"), ("±", "rises_half", ".0%"),
    ("5 %", "low", "+.3f"), ("median", "median", "+.3f"), ("95 %", "high", "+.3f"),
)  # fmt: skip

LEGEND = (
    "Kernels: drawn from U(0, 1) or N(0, 1). Size: of the kernel along each of its axes. Kernel "
    "cosine, map cosine: mean |cosine| of the two filters and of their two feature maps, over "
    "draws, and after minimisation. "
)


def _name(row: Row) -> str:
    image = f"×{row['size']}, {row['channels']} ch." * (row["axes"] == 2)
    padding = f", {row['padding']}" * (row["padding"] != "valid")
    return f"{row['inputs']}, {row['kernels']} {row['size']}{image}{padding}"


ORTHOGONALITY = Study(
    "orthogonality",
    "Does minimising the cosine of two kernels lower the cosine of their feature maps?",
    CASES,
    answer,
    COLUMNS,
    LEGEND + CHANGE,
    partial(change_figure, name=_name),
)
