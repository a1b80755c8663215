"""Time value + gradient of the penalties on ResNet-18's convolutions, as ratios within one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from convsim import ConvolutionalSimilarity, Regularizer
from convsim.lab.models import build_model
from convsim.lab.records import append_record, environment

ROUNDS = 15
RESULTS = Path(__file__).parent / "results" / "penalty_cost.jsonl"


def resnet18_convolutions() -> nn.Module:
    """Take ResNet-18's convolutions, with ImageNet's 7×7 stem."""
    convolutions = [
        m for m in build_model("resnet18", classes=10).modules() if isinstance(m, nn.Conv2d)
    ]
    return nn.ModuleList([nn.Conv2d(3, 64, 7, stride=2), *convolutions[1:]])


def soft_orthogonality(weight: Tensor) -> Tensor:
    """Compute ‖WWᵀ − I‖² over filters (Bansal et al. 2018)."""
    filters = weight.flatten(1)
    return (filters @ filters.mT - torch.eye(len(filters))).square().sum()


def by_autograd(model: nn.Module, penalty: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Sum a penalty over all weights and pass back."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    return lambda: torch.stack([penalty(weight) for weight in weights]).sum().backward()


def training_step(regularized: bool) -> Callable[[], None]:
    """Build one SGD step of ResNet-18 on 128 images of 32×32."""
    model = build_model("resnet18", classes=10)
    regularizer = Regularizer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        if regularized:
            regularizer.backward_()
        optimizer.step()

    return step


def times(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time every variant once a round, after one round of warm-up; milliseconds."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if round_:
                samples[name].append(1e3 * (time.perf_counter() - started))
    return samples


def main() -> None:
    """Time, print, record."""
    torch.manual_seed(0)
    model = resnet18_convolutions()
    recommended = Regularizer(model)
    matched = ConvolutionalSimilarity(channels="matched")
    penalties = times(
        {
            "L2, autograd": by_autograd(model, lambda w: w.square().sum()),
            "soft orthogonality, autograd": by_autograd(model, soft_orthogonality),
            "recommended, closed form": recommended.backward_,
            "recommended, autograd": lambda: recommended().backward(),
            "matched, closed form": Regularizer(model, matched).backward_,
            "authors, closed form": Regularizer(model, "authors").backward_,
        },
        ROUNDS,
    )
    steps = times(
        {"plain step": training_step(False), "step with recommended": training_step(True)}, 5
    )
    base, rival = (median(penalties[name]) for name in list(penalties)[:2])
    print(
        "| value + gradient, ResNet-18's convolutions | median, ms | ÷ L2 | ÷ soft orthogonality |"
    )
    print("|---|---:|---:|---:|")
    for name, samples in penalties.items():
        m = median(samples)
        print(f"| {name} | {m:.1f} | {m / base:.2f} | {m / rival:.2f} |")
    plain, with_penalty = (median(samples) for samples in steps.values())
    print(
        f"\nTraining step, batch 128 at 32×32: {plain:.0f} ms; "
        f"with the penalty {with_penalty:.0f} ms"
    )
    share = median(penalties["recommended, closed form"]) / plain
    print(f"The penalty's own time is {share:.1%} of the step's.")
    record = {"schema": 1, "milliseconds": penalties | steps, "environment": environment()}
    append_record(RESULTS, record)


if __name__ == "__main__":
    main()
