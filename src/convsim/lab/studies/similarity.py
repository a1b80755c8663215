"""Does minimising Convolutional Similarity lower the similarity of feature maps, for any input?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from convsim.lab.studies.draws import (
    INPUTS,
    Setting,
    bank_of,
    draw,
    feature_maps,
    mean_cosine,
)
from convsim.lab.studies.figures import change_figure
from convsim.lab.studies.minimization import CHANGE, change, minimize
from convsim.lab.studies.study import Row, Study
from convsim.similarity.certificate import certified_cosines

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "relu": nn.functional.relu,
    "elu": nn.functional.elu,
    "leaky_relu": nn.functional.leaky_relu,
}


@dataclass(frozen=True)
class Case(Setting):
    """A setting, what is minimised, and after which activation feature maps are compared.

    Attributes:
        scale: "raw", "unit", or "raw, norm kept": raw, each filter scaled back to its first norm
            after the last step.
        activation: A key of `ACTIVATIONS`.
        adversarial: Whether inputs are chosen to make the maps as alike as possible, by gradient
            ascent on |cosine| from the drawn ones, once for the filters before and once after.
    """

    scale: str = "raw"
    activation: str = "none"
    adversarial: bool = False


_SCALES = ("raw", "raw, norm kept", "unit")

CASES = (
    *(Case(inputs=i, kernels=k, scale=s)
      for s in _SCALES for i in INPUTS for k in ("uniform", "normal")),
    *(Case(inputs="photographs", kernels="normal", size=3, axes=2, channels=c, scale=s)
      for s in _SCALES for c in (1, 3, 8)),
    *(Case(inputs="photographs", kernels="normal", activation=a, scale=s)
      for s in ("raw", "unit") for a in list(ACTIVATIONS)[1:]),
    *(Case(inputs="normal", kernels=k, scale=s, padding="full", adversarial=True)
      for s in ("raw", "unit") for k in ("uniform", "normal")),
)  # fmt: skip


def answer(case: Case, draws: int) -> Row:
    """Minimise; compare cosine, inner product and norms of the feature maps before and after."""
    filters, inputs = draw(case, draws)
    after = minimize(filters, case.scale.partition(",")[0])
    if case.scale.endswith("kept"):
        norms = [w.flatten(2).norm(dim=-1)[..., None] for w in (filters, after)]
        after = (after.flatten(2) * norms[0] / norms[1]).view_as(after)
    activate = ACTIVATIONS[case.activation]
    maps, exceeded = [], 0
    for w in (filters, after):
        x = _worst_inputs(w, inputs) if case.adversarial else inputs
        maps.append(activate(feature_maps(w, x, case.padding)))
        exceeded += _certificate_violations(w, x)
    products = [torch.linalg.vector_norm(m, dim=-1).prod(1) for m in maps]
    inner = [_inner(m) for m in maps]
    return change(*map(mean_cosine, maps)) | {
        "inner": (inner[1].mean() / inner[0].mean()).item() - 1,
        "norms": (products[1].mean() / products[0].mean()).item() - 1,
        "violations": exceeded,
    }


def _inner(maps_GMP: Tensor) -> Tensor:
    return (maps_GMP[:, 0] * maps_GMP[:, 1]).sum(-1).abs()


def _worst_inputs(filters: Tensor, inputs: Tensor, steps: int = 100) -> Tensor:
    """Raise |cosine| of the maps at full padding over the inputs, on each draw by itself."""
    x = inputs.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05, maximize=True)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_cosine(feature_maps(filters, x, "full")).sum().backward()
        optimizer.step()
    return x.detach()


def _certificate_violations(filters_GMCk: Tensor, inputs_GCx: Tensor) -> int:
    """Count draws where |⟨F_i, F_j⟩| exceeds √CS‖R‖ at full padding; there must be none."""
    inputs_NCx = inputs_GCx.flatten(0, 1).unsqueeze(0)
    bound, measured = certified_cosines(bank_of(filters_GMCk), inputs_NCx)
    return int((measured > bound * (1 + 1e-9)).flatten(2).any(-1).sum())


COLUMNS = (
    ("minimised", "scale", ""), ("inputs", "inputs", ""), ("kernels", "kernels", ""),
    ("size", "size", ""), ("axes", "axes", ""), ("channels", "channels", ""),
    ("activation", "activation", ""), ("adversarial", "adversarial", ""),
    ("map cosine", "before", ".3f"), ("after", "after", ".3f"), ("change", "relative", "+.0%"),
    ("rises in", "rises", ".0%"), ("±", "rises_half", ".0%"),
    ("inner product", "inner", "+.0%"), ("norm product", "norms", "+.0%"),
    ("above the bound", "violations", "d"),
)  # fmt: skip

LEGEND = (
    "Minimised: Convolutional Similarity of the filters as they are (raw), the same with each "
    "filter scaled back to its first norm, or of unit filters. Kernels: drawn from U(0, 1) or "
    "N(0, 1). Size: of the kernel along each of its axes. Activation: after which maps are "
    "compared. Adversarial: whether inputs are chosen to make the maps alike. Map cosine: mean "
    "|cosine| of the two feature maps over draws, and after minimisation. Inner product, norm "
    "product: change of the mean |inner product| of the maps and of the product of their norms. "
    "Above the bound: draws whose inner product exceeds the certificate. "
)


def _name(row: Row) -> str:
    image = f"×{row['size']}, {row['channels']} ch." * (row["axes"] == 2)
    activation = f", {row['activation']}" * (row["activation"] != "none")
    adversarial = ", adversarial" * row["adversarial"]
    kernels = f"{row['kernels']} {row['size']}"
    return f"{row['scale']}: {row['inputs']}, {kernels}{image}{activation}{adversarial}"


SIMILARITY = Study(
    "similarity",
    "Does minimising Convolutional Similarity of two filters lower the cosine of their feature "
    "maps, and does any input exceed the certificate?",
    CASES,
    answer,
    COLUMNS,
    LEGEND + CHANGE,
    partial(change_figure, name=_name),
)
