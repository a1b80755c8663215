"""Are adjacent pairs of filters enough, and how near does minimisation come to the lower bound?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convsim.lab.studies.draws import Setting, bank_of, draw, feature_maps, mean_cosine
from convsim.lab.studies.minimization import CHANGE, STEPS, change
from convsim.lab.studies.study import Row, Study
from convsim.penalties import ConvolutionalSimilarity
from convsim.report.figures import new_figure
from convsim.similarity import Options, bank_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Case(Setting):
    """A setting, and which pairs count: "all", "adjacent", or "random": adjacent in a new order."""

    pairs: str = "all"


CASES = tuple(
    Case(inputs="photographs", kernels="normal", size=3, axes=2, channels=3, filters=m, pairs=p)
    for m in (4, 8, 16, 32, 64, 128, 256)
    for p in ("all", "adjacent", "random")
)


def answer(case: Case, draws: int) -> Row:
    """Minimise over such pairs; compare the mean over all pairs before and after, and the bound."""
    filters, inputs = draw(case, draws)
    after = _minimize(filters, case.pairs)
    (before, _), (similarity, bound) = (_mean_similarity(w) for w in (filters, after))
    maps = [mean_cosine(feature_maps(w, inputs, case.padding)) for w in (filters, after)]
    return change(*maps) | {
        "similarity_before": before.mean().item(),
        "similarity_after": similarity.mean().item(),
        "bound": bound.mean().item(),
    }


def _minimize(filters_GMCk: Tensor, pairs: str) -> Tensor:
    """Run Adam on the mean over the pairs of unit filters, on each draw by itself."""
    generator = torch.Generator().manual_seed(0)
    penalty = ConvolutionalSimilarity(
        pairs="all" if pairs == "all" else "adjacent", scale="unit", reduction="mean"
    )
    filters = filters_GMCk.clone().requires_grad_()
    optimizer = torch.optim.Adam([filters], lr=0.02)
    for _ in range(STEPS):
        order = torch.arange(filters.shape[1])
        if pairs == "random":
            order = torch.randperm(len(order), generator=generator)
        _, gradient = penalty.value_and_gradient(bank_of(filters[:, order]))
        filters.grad = torch.empty_like(gradient)
        filters.grad[:, order] = gradient
        optimizer.step()
    return filters.detach()


def _mean_similarity(filters_GMCk: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over pairs, and what it cannot fall below: (M² − Σ‖A_i‖²) / (M(M − 1)).

    A_i[0] = 1 for unit filters, so that ‖ΣA_i‖² ≥ M², with equality for a flat total spectrum.
    """
    matrix_GMM = bank_matrix(bank_of(filters_GMCk), Options())
    filters = matrix_GMM.shape[1]
    trace = matrix_GMM.diagonal(dim1=1, dim2=2).sum(1)
    totals = (matrix_GMM.sum((1, 2)), filters**2)
    mean, bound = ((total - trace) / (filters * (filters - 1)) for total in totals)
    return mean, bound


COLUMNS = (
    ("filters", "filters", "d"), ("pairs", "pairs", ""),
    ("similarity", "similarity_before", ".3f"), ("after", "similarity_after", ".3f"),
    ("lower bound", "bound", ".3f"),
    ("map cosine", "before", ".3f"), ("after", "after", ".3f"), ("change", "relative", "+.1%"),
    ("rises in", "rises", ".0%"), ("±", "rises_half", ".0%"),
)  # fmt: skip

LEGEND = (
    "Pairs: which are minimised: all, adjacent ones, or adjacent ones in a new order at each step. "
    "Similarity: mean Convolutional Similarity over all pairs of unit filters, and after "
    "minimisation; lower bound: what it cannot fall below. Map cosine: mean |cosine| of pairs of "
    "feature maps over draws, and after. "
)


def figure(rows: Sequence[Row]) -> Figure:
    """Draw similarity after minimisation, its lower bound and the maps' change, by filters."""
    drawing = new_figure(11, 4)
    left, right = drawing.subplots(1, 2)
    for pairs, color in (("all", "#1b9e77"), ("adjacent", "#d95f02"), ("random", "#7570b3")):
        mine = [row for row in rows if row["pairs"] == pairs]
        filters = [row["filters"] for row in mine]
        left.plot(filters, [r["similarity_after"] for r in mine], "o-", color=color, label=pairs)
        left.plot(filters, [r["bound"] for r in mine], ":", color=color)
        right.plot(filters, [100 * r["relative"] for r in mine], "o-", color=color, label=pairs)
    left.set_title("Similarity after minimisation, all pairs (dotted: lower bound)", fontsize=10)
    right.set_title("Change of the feature maps' |cosine|, %", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("filters of a layer")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, title="pairs")
    return drawing


PAIRS = Study(
    "pairs",
    "Are adjacent pairs enough, and how near does minimisation come to the lower bound?",
    CASES,
    answer,
    COLUMNS,
    LEGEND + CHANGE,
    figure,
    draws=100,
    quick=5,
)
