"""Forward passes that start in the middle of a network.

A module is a cut if the rest of the network reads its output and nothing else from before it. A
pass resumes there: modules before it pass on what they are given, and it puts out what it did the
last time. Each cut is tried first: the outputs must be the network's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.topology import Additions
from convsim.shrinking.verification import outputs

_MOST_LAYERS = 3
"""Of the layers asked for in one module: a larger one is looked into, for cuts inside it."""


@dataclass(frozen=True)
class Cut:
    """A module that a forward pass can be resumed after.

    Attributes:
        module: Its name.
        passed: The names of modules that need not be run before it.
        additions: How many sums of two tensors the network has computed by its end.
        layers: The layers asked for that are called after it.
    """

    module: str
    passed: tuple[str, ...]
    additions: int
    layers: frozenset[str]


class Reached(Exception):  # noqa: N818 - it carries a result, it is no error
    """The forward pass is past what was to be seen."""


def cuts(model: nn.Module, inputs: Tensor, layers: Collection[str]) -> list[Cut]:
    """Find where a network's forward pass can be resumed, in the order of computation.

    Args:
        model: The network, in ``eval()`` mode.
        inputs: A small batch.
        layers: The names of the layers that passes are resumed for.

    Cost: a pass, and one for each module tried, from it on.
    """
    tried = _tried(model, layers)
    ends: list[tuple[str, int, Tensor]] = []
    remaining: dict[str, set[str]] = {}
    calls: dict[str, int] = {}

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                ends.append((name, additions.count, output.clone()))
                remaining[name] = set()

        return hook

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            for later in remaining.values():
                later.add(name)

        return hook

    additions = Additions(lambda *_: None)
    handles = [model.get_submodule(name).register_forward_hook(after(name)) for name in tried]
    handles += [
        model.get_submodule(name).register_forward_pre_hook(before(name)) for name in layers
    ]
    try:
        with torch.no_grad(), additions:
            want = outputs(model, inputs.clone())
    finally:
        for handle in handles:
            handle.remove()
    found: list[Cut] = []
    passed: list[str] = []
    for name, count, maps in ends:
        if calls[name] == 1:
            if remaining[name]:
                cut = Cut(name, tuple(passed), count, frozenset(remaining[name]))
                if _holds(model, inputs, cut, maps, want, additions.count):
                    found.append(cut)
            passed.append(name)
    return found


def _tried(model: nn.Module, layers: Collection[str]) -> list[str]:
    """List the largest modules that hold few layers."""

    def inside(name: str) -> int:
        return sum(layer == name or layer.startswith(f"{name}.") for layer in layers)

    found: list[str] = []
    stack = [(name, child) for name, child in model.named_children()]
    while stack:
        name, module = stack.pop()
        if inside(name) <= _MOST_LAYERS:
            found.append(name)
        else:
            stack += [(f"{name}.{own}", child) for own, child in module.named_children()]
    return found


def _holds(
    model: nn.Module, inputs: Tensor, cut: Cut, maps: Tensor, want: Sequence[Tensor], sums: int
) -> bool:
    """Tell whether the network, resumed at a cut, puts out the same and counts the same sums."""
    additions = Additions(lambda *_: None)
    try:
        with torch.no_grad(), additions, resumed(model, cut, maps, additions):
            got = outputs(model, inputs.clone())
    except Exception:  # whatever a network stumbles over that is given other maps than it expects
        return False
    same = [x.shape for x in got] == [x.shape for x in want] and all(map(torch.equal, got, want))
    return same and additions.count == sums


@contextmanager
def resumed(model: nn.Module, cut: Cut, maps: Tensor, additions: Additions) -> Iterator[None]:
    """Let a network's forward pass start from what a module put out, inside the block.

    Args:
        model: The network; what it is called with does not matter, but for its kind.
        cut: The module.
        maps: What it put out; they are copied.
        additions: Counts from the cut on, as if the pass had been whole.
    """

    def put_out(*args: Any, **options: Any) -> Tensor:
        additions.go_on(cut.additions)
        return maps.clone()

    sizes: list[int] = []

    def hand_on(x: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 2:
            return x
        sizes.append(x.numel())
        if x.numel() <= sizes[0]:
            return x
        # Branches put side by side: four times as much from one block to the next.
        return x[:, : max(1, x.shape[1] * sizes[0] // x.numel())]

    before: list[tuple[nn.Module, Any]] = []
    additions.wait()
    try:
        for name in (*cut.passed, cut.module):
            module = model.get_submodule(name)
            before.append((module, module.__dict__.get("forward")))
            module.forward = put_out if name == cut.module else hand_on
        yield
    finally:
        for module, own in before:
            del module.__dict__["forward"]
            if own is not None:
                module.forward = own
