"""Minimise a penalty on many draws of filters at once, and describe what became of them."""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.lab.studies.draws import bank_of
from convsim.penalties import ConvolutionalSimilarity, CosineOrthogonality, Penalty

STEPS = 300

PENALTIES: dict[str, Penalty] = {
    "cosine": CosineOrthogonality(reduction="sum"),
    "raw": ConvolutionalSimilarity(scale="raw", reduction="sum"),
    "unit": ConvolutionalSimilarity(scale="unit", reduction="sum"),
}
# SGD's rates in the authors' scripts, made free of units: 0.1 on the pair's cosine², which "sum"
# counts twice, and 0.01 on raw similarity. Both for 9 weights from U(0, 1), where E‖K‖² = 3 and E
# CS = 38.
_RATES = {"cosine": 0.1 / 3 / 2, "unit": 0.1, "raw": 0.01 * 38 / 3}


def minimize(filters_GMCk: Tensor, name: str, steps: int = STEPS) -> Tensor:
    """Run SGD on a penalty of `PENALTIES`, on each draw by itself.

    The rate is scaled so that directions (and, for "raw", norms) change as fast as in the authors'
    setting, for kernels of any size: by the mean over draws of ‖K‖², for "raw" divided by that of
    CS.
    """
    penalty = PENALTIES[name]
    filters = filters_GMCk.clone().requires_grad_()
    rate = _RATES[name] * filters_GMCk.flatten(2).square().sum(-1).mean().item()
    if name == "raw":
        groups, count = filters.shape[:2]
        pairs = groups * count * (count - 1) / 2
        rate *= pairs / penalty.value(bank_of(filters_GMCk)).item()
    optimizer = torch.optim.SGD([filters], lr=rate)
    for _ in range(steps):
        _, filters.grad = penalty.value_and_gradient(bank_of(filters))
        optimizer.step()
    return filters.detach()


CHANGE = (
    "Change: of the mean. Rises in: the share of draws in which it rises, ± half of the 95 % "
    "interval. 5 %, median, 95 %: quantiles over draws of the difference, where given."
)
"""What a table's columns of `change` say."""


def change(before_G: Tensor, after_G: Tensor) -> dict[str, float]:
    """Summarise a quantity before and after: means, their ratio, quantiles, how often it rose."""
    difference = after_G - before_G
    quantiles = torch.tensor([0.05, 0.5, 0.95], dtype=difference.dtype)
    low, median, high = difference.quantile(quantiles).tolist()
    rises = (difference > 0).double().mean().item()
    return {
        "before": before_G.mean().item(),
        "after": after_G.mean().item(),
        "relative": (after_G.mean() / before_G.mean()).item() - 1,
        "rises": rises,
        "rises_half": 1.96 * (rises * (1 - rises) / len(before_G)) ** 0.5,
        "low": low,
        "median": median,
        "high": high,
    }
