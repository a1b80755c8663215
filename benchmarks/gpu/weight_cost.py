"""Stage: value and gradient of the penalties on kernels alone, beside the memory floor and rivals.

Any value and gradient must read the weights twice (a filter's partners are known only after all
were read) and read and write the gradient: 16 bytes a weight. That over the bandwidth of a large
copy is the floor; what the last-level cache holds can be faster. So every variant takes its turn on
several sets of weights that together exceed the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from accelerator import captured, free, milliseconds, wait
from contenders import penalties, takes_kernels_alone
from journal import Journal
from networks import RIVALS, WEIGHTS, by_autograd, small_classifier
from timing import beside, in_turn, quartiles
from torch import Tensor, nn

from convsim import PRESETS, Regularizer

_BYTES = 16  # a weight: read, read again, its gradient read and written
_SLOW = 100.0  # ms; what takes longer is timed once
BASE = "L2, autograd"
GRAPHED = ", in a CUDA graph"
Variant = Callable[[], Any]


def run(journal: Journal, *, rehearse: bool) -> None:
    """Measure the bandwidth, then one weight list after the other."""
    device = journal.device
    copied = journal.attempt("copy bandwidth", lambda: bandwidth(device, rehearse))
    names = [name for name in penalties() if takes_kernels_alone(name)]
    for weights in ["small"] if rehearse else WEIGHTS:
        if f"{weights}: times" not in journal.results:
            one_list(journal, weights, names[:2] if rehearse else names, copied, rehearse)
            free(device)


def one_list(journal: Journal, weights: str, names: list[str], copied: Any, rehearse: bool) -> None:
    """Build each variant on one weight list, then time those that are quick enough in turn."""
    device = journal.device
    sets = model_sets(weights, device, rehearse)
    journal.attempt(f"{weights}: size", lambda: size(sets[0], copied))
    variants: dict[str, Variant] = {}
    for name, build in candidates(names, sets, device).items():
        journal.attempt(
            f"{weights}: {name}",
            lambda build=build, name=name: warm(name, build, variants, device),
            seconds=20,
            poisons=name.endswith(GRAPHED),
            prepares=True,
        )
    journal.attempt(
        f"{weights}: times", lambda: times(variants, device, journal.left, rehearse), seconds=40
    )


def bandwidth(device: torch.device, rehearse: bool) -> dict[str, Any]:
    """Copy memory to memory, counting bytes read plus bytes written."""
    count = 1 << (20 if rehearse else 29)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    samples = [milliseconds(lambda: target.copy_(source), device) for _ in range(9)]
    rates = [2 * 4 * count / (1e6 * ms) for ms in samples]
    return {"GB_per_s": quartiles(rates), "bytes": 2 * 4 * count}


def model_sets(weights: str, device: torch.device, rehearse: bool) -> list[nn.Module]:
    """Build the same list of weights several times, that together they exceed the cache."""
    torch.manual_seed(0)
    first = build(weights).to(device)
    own = 8 * sum(p.numel() for p in first.parameters())  # with gradients
    cache = (
        1
        if device.type != "cuda"
        else getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 1 << 26)
    )
    count = 1 if rehearse else min(8, 1 + 4 * cache // own)
    sets = [first, *(build(weights).to(device) for _ in range(count - 1))]
    for model in sets:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
    return sets


def build(weights: str) -> nn.Module:
    """Build a weight list; for a rehearsal, a small one."""
    return small_classifier() if weights == "small" else WEIGHTS[weights]()


def size(model: nn.Module, copied: Any) -> dict[str, Any]:
    """Count the weights, all and those that the crossed penalty acts on, and name their floors."""
    found: dict[str, Any] = {"weights": sum(p.numel() for p in model.parameters() if p.dim() > 2)}
    regularizer = Regularizer(model, "crossed")
    left_out = {
        line.split(":")[0].strip() for line in repr(regularizer).splitlines() if "left out" in line
    }
    found["weights crossed acts on"] = sum(
        layer.module.weight.numel() for layer in regularizer.layers if layer.name not in left_out
    )
    if copied:
        rate = copied["GB_per_s"]["median"]
        for what in ("weights", "weights crossed acts on"):
            found[f"floor of {what}, ms"] = _BYTES * found[what] / (1e6 * rate)
    return found


def candidates(
    names: list[str], sets: list[nn.Module], device: torch.device
) -> dict[str, Callable[[], Variant]]:
    """List how each variant is built; building one that captures also runs it."""
    found: dict[str, Callable[[], Variant]] = {
        "floor: read, read, add to the gradient": lambda: turns([floor(model) for model in sets]),
        **{
            name: lambda rival=rival: turns([by_autograd(model, rival) for model in sets])
            for name, rival in RIVALS.items()
        },
    }
    graphed: dict[str, Callable[[], Variant]] = {}
    for name in names:
        coefficient = 1e-6 * PRESETS[name].coefficient  # gradients add up over many calls

        def steps(name: str = name, coefficient: float = coefficient) -> list[Variant]:
            return [Regularizer(m, name, coefficient=coefficient).backward_ for m in sets]

        def losses(name: str = name, coefficient: float = coefficient) -> list[Variant]:
            return [in_loss(Regularizer(m, name, coefficient=coefficient), m) for m in sets]

        found[f"{name}, backward_()"] = lambda steps=steps: turns(steps())
        found[f"{name}, loss + regularizer()"] = lambda losses=losses: turns(losses())
        if name in ("crossed", "authors", "matched", "cosine"):
            graphed[f"{name}, backward_(){GRAPHED}"] = lambda steps=steps: turns(
                [captured(step, device) for step in steps()]
            )
    return found | graphed


def turns(runs: list[Variant]) -> Variant:
    """Take the sets of weights in turn."""
    following = cycle(runs)

    def take() -> None:
        next(following)()

    return take


def in_loss(regularizer: Regularizer, model: nn.Module) -> Variant:
    """Add the penalty to a loss and pass back."""
    loss = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)

    def step() -> None:
        (loss + regularizer()).backward()

    return step


def floor(model: nn.Module) -> Variant:
    """Move the bytes that any value and gradient must, by torch's own grouped operations."""
    weights = [p for p in model.parameters() if p.dim() > 2]
    gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]

    @torch.no_grad()
    def move() -> None:
        torch._foreach_norm(weights)
        torch._foreach_add_(gradients, weights, alpha=1e-30)

    return move


def warm(
    name: str, build: Callable[[], Variant], variants: dict[str, Variant], device: torch.device
) -> dict[str, Any]:
    """Build a variant and run it until it is warm; keep it for timing if it is quick enough."""
    variant = build()
    started = time.monotonic()
    variant()
    wait(device)
    first = time.monotonic() - started
    once = min(milliseconds(variant, device) for _ in range(2))
    if once < _SLOW:
        for _ in range(8):  # every set of weights has had its turn
            variant()
        variants[name] = variant
    wait(device)
    return {"first_s": first, "ms": once}


def times(
    variants: dict[str, Variant], device: torch.device, left: float, rehearse: bool
) -> dict[str, Any]:
    """Time what is warm, in turn."""
    samples = in_turn(
        variants,
        device,
        rounds=2 if rehearse else 30,
        until=time.monotonic() + min(12.0, left - 3),
    )
    base = BASE if BASE in samples else next(iter(samples))
    return {"base": base, "variants": beside(samples, base)}
