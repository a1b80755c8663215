"""Whether cutting channels out of a network does what it should.

A network whose channels are cut, without compensation, must put out the same as the whole network
with those channels set to zero where they are read. Where it does not, the dependency graph is
mistaken.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convsim.errors import NonFiniteError
from convsim.shrinking.channels import Group, cut_, kept_axes
from convsim.shrinking.weights import channel_axis

_TOLERANCE = 1e-6
"""Most difference, relative to the largest output; in float64, where rounding is far below it."""


def verified(
    model: nn.Module, groups: Sequence[Group], inputs: Tensor
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Check that some channels of each group can be cut.

    All are cut at once; where that differs, halves of them, down to the groups that are at fault.

    Returns:
        The groups that can be cut, and the others with the reason.

    Cost: two forward passes, and 2 log₂(groups) more for each group at fault.
    """
    exact = copy.deepcopy(model).eval().double()
    sound: list[Group] = []
    refuted: list[tuple[Group, str]] = []
    stack = [list(groups)] if groups else []
    while stack:
        together = stack.pop()
        kept = [(group, _some_channels(group)) for group in together]
        reason = disagreement(exact, kept, inputs.double())
        if reason is None:
            sound += together
        elif len(together) == 1:
            refuted.append((together[0], reason))
        else:
            half = len(together) // 2
            stack += [together[half:], together[:half]]
    place = {group: n for n, group in enumerate(groups)}
    return sorted(sound, key=place.__getitem__), refuted


def _some_channels(group: Group) -> list[int]:
    """Keep about three units of four, without a pattern."""
    count = len(group.units)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    return sorted(c for unit in order[: max(1, 3 * count // 4)] for c in group.units[unit])


def disagreement(
    model: nn.Module, kept: Iterable[tuple[Group, Collection[int]]], inputs: Tensor
) -> str | None:
    """Say how a network with some channels cut differs from one with them zeroed.

    Args:
        model: The whole network, in float64 and ``eval()`` mode; unchanged.
        kept: Groups, with the channels that are kept of each.
        inputs: A small batch.

    Returns:
        What is wrong, None if nothing is.

    Raises:
        NonFiniteError: If the whole network puts out NaN or infinity.
    """
    kept = list(kept)
    small = copy.deepcopy(model)
    with torch.no_grad():
        try:
            cut_(small, kept_axes(kept))
            got = outputs(small, inputs)
        except Exception as error:  # whatever a network that is cut wrongly stumbles over
            return f"without them the network fails ({type(error).__name__}: {_first_line(error)})"
        with _zeroed(model, kept):
            want = outputs(model, inputs)
    if not all(x.isfinite().all() for x in want):
        raise NonFiniteError(
            f"The model's outputs hold NaN or infinite values for the first {len(inputs)} "
            "calibration images. Check the images and the weights."
        )
    if [x.shape for x in got] != [x.shape for x in want]:
        return "without them the network's outputs have another shape"
    for a, b in zip(got, want, strict=True):
        worst = float((a - b).abs().max()) if a.numel() else 0.0
        if not worst <= _TOLERANCE * max(float(b.abs().max()) if b.numel() else 0.0, 1e-30):
            return (
                f"cutting them differs from zeroing them (by {worst:.2g}): the dependency graph "
                "mistakes where they are"
            )
    return None


def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run a network and list the tensors of real numbers that it puts out."""
    leaves = tree_leaves(_plain(model(inputs)))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _plain(output: Any) -> Any:
    """See an output of transformers, which is a dataclass and a dict, as a dict."""
    return dict(output.items()) if hasattr(output, "items") else output


@contextmanager
def _zeroed(model: nn.Module, kept: list[tuple[Group, Collection[int]]]) -> Iterator[None]:
    """Zero the channels that are not kept, where consumers read them."""
    handles = []
    for group, channels in kept:
        staying = {-1, *channels}
        for slot in group.consumers:
            mask = torch.tensor([channel in staying for channel in slot.channels])
            module = model.get_submodule(slot.key.name)
            hook = partial(_mask, mask)
            handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask(mask: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = args
    axis = channel_axis(module, x)
    shape = [1] * x.dim()
    shape[axis] = -1
    return (x * mask.to(x).view(shape), *others)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
