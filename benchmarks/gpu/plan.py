"""What the evidence consists of: which runs, in the order of worth."""

from __future__ import annotations

from dataclasses import dataclass

from contenders import penalties

_COMPARED = ("recommended", "cosine", "authors", "decov")


@dataclass(frozen=True)
class Block:
    """Runs of every method on one network by one recipe.

    Attributes:
        network: A name in `NETWORKS`.
        recipe: A name in `RECIPES`.
        tuning: The budget of tuning runs, in epochs.
        factors: What the presets' coefficients are multiplied by in tuning; one is not tuned.
        budgets: Epochs of the runs that count, in the order of worth.
        seeds: Seeds of them.
        keeps: Whether the trained network of the longest budget is kept, for shrinking.
    """

    network: str
    recipe: str
    tuning: int
    factors: tuple[float, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    keeps: bool = False


PLAN = (
    Block("cnn", "modern", 4, (0.2, 1.0, 5.0), (8, 4, 2, 16), (0, 1, 2, 3, 4)),
    Block("resnet18", "modern", 2, (0.2, 1.0, 5.0), (8,), (0, 1, 2, 3, 4), keeps=True),
    Block("resnet18", "authors", 2, (0.2, 1.0, 5.0), (8,), (0, 1)),
    Block("cnn", "authors", 4, (0.2, 1.0, 5.0), (8, 4, 2, 16), (0, 1, 2, 3, 4)),
    Block("resnet18", "modern", 2, (0.2, 1.0, 5.0), (16, 4, 2), (0, 1, 2, 3), keeps=True),
    Block("resnet18", "authors", 2, (0.2, 1.0, 5.0), (8, 16, 4, 2), (0, 1, 2, 3)),
    Block("vgg19", "modern", 2, (0.2, 1.0, 5.0), (8, 16, 4, 2), (0, 1, 2)),
)
REHEARSED = (
    Block("tiny", "modern", 1, (1.0, 2.0), (1,), (0,), keeps=True),
    Block("tiny", "authors", 1, (1.0,), (1,), (0,)),
)


def compared(rehearse: bool) -> list[str]:
    """List the methods: none, then penalties; "NAME, falling" lets the coefficient fall to 0."""
    names = [name for name in _COMPARED if name in penalties()]
    found = ["none"]
    for name in names[:2] if rehearse else names:
        found.append(name)
        if name == "recommended":  # with a coefficient that falls to 0, too
            found.append(f"{name}, falling")
    return found
