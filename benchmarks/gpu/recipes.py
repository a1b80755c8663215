"""How networks are trained: batches, learning rates by step, augmentation, the penalty's share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MARGIN = 4
"""The farthest shift of a crop, in pixels (He et al. 2015, section 4.2)."""


@dataclass(frozen=True)
class Recipe:
    """One way to train with SGD.

    Attributes:
        batch: Images a step.
        rate: The highest learning rate.
        schedule: "one-cycle" rises in a line over the first fifth and falls in a line to 0;
            "steps" is a tenth after half and a hundredth after three quarters.
        momentum: Of SGD.
        nesterov: Whether momentum looks ahead.
        decay: Weight decay, on all parameters.
        augmented: Whether images are shifted and mirrored.
    """

    batch: int
    rate: float
    schedule: Literal["one-cycle", "steps"]
    momentum: float = 0.9
    nesterov: bool = False
    decay: float = 0.0
    augmented: bool = False


RECIPES = {
    "modern": Recipe(256, 0.4, "one-cycle", nesterov=True, decay=5e-4, augmented=True),
    # As the authors of Convolutional Similarity train (arXiv 2411.03226).
    "authors": Recipe(128, 0.1, "steps"),
}


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """List the learning rate of each step."""
    if recipe.schedule == "steps":
        tenths = [(2 * i >= steps) + (4 * i >= 3 * steps) for i in range(steps)]
        return [recipe.rate * 0.1**power for power in tenths]
    rise = max(1, math.ceil(steps / 5))
    up = [recipe.rate * (i + 1) / rise for i in range(rise)]
    down = [recipe.rate * (steps - i) / max(1, steps - rise) for i in range(rise, steps)]
    return (up + down)[:steps]


def penalty_shares(steps: int, *, falling: bool) -> list[float]:
    """List what the coefficient is multiplied by: 1, or in a line from 1 to 0 by half."""
    return [max(0.0, 1 - 2 * i / steps) if falling else 1.0 for i in range(steps)]


@dataclass(frozen=True)
class Order:
    """Which images each step takes (T, B), and how each one is shifted and mirrored."""

    index: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor


def order(recipe: Recipe, images: int, epochs: int, seed: int) -> Order:
    """Shuffle the images anew for each epoch; the last ones, too few for a batch, are left out."""
    generator = torch.Generator().manual_seed(seed)
    steps = images // recipe.batch
    index = torch.cat(
        [torch.randperm(images, generator=generator)[: steps * recipe.batch] for _ in range(epochs)]
    ).view(epochs * steps, recipe.batch)
    if not recipe.augmented:
        middle = torch.full_like(index, MARGIN)
        return Order(index, middle, middle, torch.zeros_like(index))
    top, left = torch.randint(2 * MARGIN + 1, (2, *index.shape), generator=generator)
    return Order(index, top, left, torch.randint(2, index.shape, generator=generator))
