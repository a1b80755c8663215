"""The public door: a trained network in, a smaller one out."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from convsim.batches import Batch
from convsim.errors import ConvsimError
from convsim.kernels import LayerFilter
from convsim.shrinking.archive import REPORT, save_network
from convsim.shrinking.budget import (
    Cost,
    allocate,
    channel_cost,
    multiplication_cost,
    parameter_cost,
    uniform,
    uniform_share,
)
from convsim.shrinking.calibration import calibration_batches, device_of, require_shrinkable
from convsim.shrinking.channels import Group, Slot
from convsim.shrinking.groups import LeftWhole
from convsim.shrinking.plan import Plan, plan_of
from convsim.shrinking.report import ShrinkReport
from convsim.shrinking.road import Road
from convsim.shrinking.sensitivity import output_errors
from convsim.shrinking.sequence import Fitting
from convsim.shrinking.smaller import smaller
from convsim.shrinking.summary import summarize
from convsim.shrinking.survey import Survey, survey
from convsim.shrinking.verification import disagreement

Progress = Callable[[int, int], None]
"""Called with how many steps are done, and how many there are."""


@dataclass(frozen=True)
class Shrunk:
    """A smaller network, and how it came about.

    Attributes:
        model: The smaller network, of the original's class.
        report: What became of each layer.
        plan: Which channels were kept.
        left: Layers whose channels all stayed, and why.
    """

    model: nn.Module
    report: ShrinkReport
    plan: Plan
    left: tuple[LeftWhole, ...]

    def __str__(self) -> str:
        """Say what came of it in a sentence."""
        return f"{type(self.model).__name__}: {self.report}"

    def _repr_html_(self) -> str:
        """Show the report in a notebook."""
        return self.report._repr_html_()

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), plan and report (JSON) into a folder, which is made.

        `convsim.load_shrunk` rebuilds the network from it and the original class.

        Raises:
            MissingExtraError: If safetensors is not installed.
        """
        save_network(self.model, self.plan, Path(folder))
        (Path(folder) / REPORT).write_text(self.report.to_json(), encoding="utf-8")


def shrink(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    channels: float | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    keep: Mapping[str, Collection[int]] | None = None,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    uniformly: bool = False,
    multiple_of: int = 1,
    positions: int = 32,
    in_sequence: bool = True,
    progress: Progress = lambda done, total: None,
) -> Shrunk:
    """Make a trained network smaller by what is linearly redundant in it: no labels, no training.

    Maps that others determine linearly are dropped, and the layers that read them are fitted to
    read the others instead, by least squares on calibration images. First every consumer gets W·A,
    with z ≈ A z_S the best linear function of the kept maps S for all of them (Gram matrices, as in
    GRAIL, Tang et al. 2026); S is chosen greedily by the error in what the consumers put out. Then,
    from the first layer to the last, each one is fitted to what the original network computes, tap
    by tap and with a constant, from the maps of the smaller network so far; at the end of a
    residual block to the sum, so that it makes up for what the shortcut lost. The linear dependence
    of maps is also what LinDeps (2025) rests on.

    In sequence, a BatchNorm keeps the original's statistics, except for the constants that go into
    its mean: every layer is fitted to what the original puts out, so those are the statistics aimed
    at. What is fitted varies less, by what cannot be told, and before a ReLU is fitted to what that
    hears. Re-estimated statistics would stretch it to the full variance, away from what later
    layers were fitted to.

    Give one target, a share to keep of the whole network; with `channels`, of those that can go.

    Args:
        model: The network, in any mode; it is not changed.
        batches: Calibration images as `convsim.measure` takes them, a few hundred or more, in any
            order; labels are not looked at. They are copied into memory.
        channels: Share of the channels to keep, in (0, 1].
        parameters: Share of the parameters to keep.
        macs: Share to keep of the multiplications in convolutions and linear layers.
        keep: Instead of a share, the channels to keep of some layers, by name, chosen elsewhere;
            the loss of the others is only compensated for.
        layers: Layers whose outputs may be cut, as in `convsim.conv_layers`, linear layers
            included. Channels that several layers put out together are cut if all are chosen.
        uniformly: Whether to keep the same share of every layer, instead of dropping where least
            of the outputs is lost for what is saved (`convsim.shrinking.sensitivity`).
        multiple_of: Round the number of channels up to a multiple of this, as 16 for speed.
        positions: How many positions of every image and layer to take, spread evenly or at random,
            each as likely as any other.
        in_sequence: Whether to fit the layers one after the other, after W·A.
        progress: Called as groups of channels are tried, and layers fitted.

    Returns:
        The smaller network, of the same class, in the modes of the original, with report and plan.

    Raises:
        ConvsimError: If there is not exactly one target or a share outside (0, 1], no image, too
            few for the target, nothing that can go, or a model on the meta device, quantized or
            sharded.
        NonFiniteError: If an image or a map holds NaN or infinity.
        MissingExtraError: If Torch-Pruning is not installed.

    Cost: a forward pass for the statistics, with M² multiplications a position for every M maps
    read; M³ for every group and consumer; twice for each group a fit of four layers to a few
    batches, to see what its loss does to the outputs (not with `uniformly` or `keep`); then about
    one pass of either network, taken up again layer by layer at the modules past which nothing
    earlier is read (from the images where there is no such module or its maps of all images take
    more than 512 MiB); for every layer P² multiplications a position and P³/3 for the solution,
    P = channels · taps, or, if there are fewer positions S, S²·P and S³. Of P > 8,192 it is some
    2,048 positions. Memory: the images, twice while they are dealt out and one batch more, up to
    three times those maps, M² numbers, and P² or 6 S·P.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> shrunk = shrink(model, [torch.randn(32, 3, 16, 16)], channels=0.5)
        >>> shrunk.model[0].out_channels, model[0].out_channels
        (4, 8)
    """
    target = _target(channels=channels, parameters=parameters, macs=macs, keep=keep)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    require_shrinkable(model)
    original = copy.deepcopy(model).eval().requires_grad_(False)
    inputs = calibration_batches(original, batches)
    found = survey(original, inputs, layers=layers, positions=positions)
    fitting = Fitting(original, found, inputs, positions) if in_sequence else None
    searched = keep is None and not uniformly
    steps = (len(found.groups) if searched else 0) + (len(fitting.layers) if fitting else 0)
    done = itertools.count(1)

    def step() -> None:
        progress(next(done), steps)

    def weigh() -> list[Tensor]:
        return output_errors(original, found, inputs, fitting, step)

    kept = _choose(original, found, target, weigh if searched else None, multiple_of)
    _require_sound(original, found, kept, inputs[0])
    small, axes = smaller(original, found, kept)
    road = fitting.fit_(small, axes, fitting.layers, step) if fitting else Road(small, inputs)
    report = summarize(original, small, found, kept, road)
    _take_modes_(small, model)
    return Shrunk(small, report, plan_of(model, axes), tuple(found.left))


_Target = tuple[str, float | Mapping[str, Collection[int]]]
_Weigh = Callable[[], list[Tensor]]


def _target(**targets: float | Mapping[str, Collection[int]] | None) -> _Target:
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ConvsimError(
            "shrink() takes one target, a share to keep as channels=, parameters= or macs=, or the "
            f"channels themselves as keep=; got {' and '.join(given) or 'none'}."
        )
    ((name, value),) = given.items()
    if isinstance(value, Mapping):
        return name, value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ConvsimError(
            f"{name} is the share to keep, above 0 and at most 1; got {value!r}. Half is "
            f"{name}=0.5."
        )
    return name, float(value)


def _choose(
    model: nn.Module, found: Survey, target: _Target, weigh: _Weigh | None, multiple_of: int
) -> list[list[int]]:
    """Choose the channels to keep of every group."""
    name, value = target
    if isinstance(value, Mapping):
        return _as_chosen(found.groups, value)
    counts = _allocate(model, found, name, value, weigh, multiple_of)
    return [found.channels(number, count) for number, count in enumerate(counts)]


def _as_chosen(groups: Sequence[Group], keep: Mapping[str, Collection[int]]) -> list[list[int]]:
    """Take the channels that somebody else chose.

    Raises:
        ConvsimError: If a layer's channels cannot be cut, or some of those that only go together
            are kept and others not.
    """
    left = dict(keep)
    chosen: list[list[int]] = []
    for group in groups:
        staying = set(range(group.channels))
        for slot in group.putting_out:
            wanted = left.pop(slot.key.name, None)
            if wanted is not None:
                staying = {slot.channels[index] for index in _numbers(wanted, slot)}
        broken = [unit for unit in group.units if 0 < len(staying & {*unit}) < len(unit)]
        if broken or not staying:
            raise ConvsimError(
                f"keep: of the channels that {group.name!r} puts out, at least one must be kept, "
                f"and those that are tied together all or none; got {sorted(staying)[:8]} …, "
                f"where {list(broken[0]) if broken else 'nothing'} belong together."
            )
        chosen.append(sorted(staying))
    if left:
        raise ConvsimError(
            f"keep: the channels of {', '.join(map(repr, left))} cannot be cut, or there is no "
            "such layer. Shrunk.left of another run names the reasons."
        )
    return chosen


def _numbers(wanted: Collection[int], slot: Slot) -> list[int]:
    """Read the numbers of channels of one layer."""
    most = len(slot.channels)
    try:
        numbers = [operator.index(one) for one in wanted]
    except TypeError:
        numbers = [-1]
    if not all(0 <= number < most for number in numbers):
        raise ConvsimError(
            f"keep: the channels of {slot.key.name!r} are numbered from 0 to {most - 1}; got "
            f"{list(wanted)[:8]}."
        )
    return numbers


def _allocate(
    model: nn.Module,
    found: Survey,
    name: str,
    share: float,
    weigh: _Weigh | None,
    multiple_of: int,
) -> list[int]:
    """Choose how many units to keep of every group, the same share if they are not weighed."""
    groups = found.groups
    multiples = [max(1, math.ceil(multiple_of * len(g.units) / g.channels)) for g in groups]
    if name == "channels" and weigh is None:
        return uniform_share(groups, share, multiples)
    costs: dict[str, Callable[[], Cost]] = {
        "channels": lambda: channel_cost(groups),
        "parameters": lambda: parameter_cost(model, groups),
        "macs": lambda: multiplication_cost(model, groups, found.positions),
    }
    cost = costs[name]()
    whole = cost.at([len(group.units) for group in groups])
    most = share * whole
    least = cost.at([min(len(g.units), m) for g, m in zip(groups, multiples, strict=True)])
    if least > most:
        names = ", ".join(f"{one.layer} ({one.reason})" for one in found.left[:5])
        raise ConvsimError(
            f"{name}={share:g} cannot be reached: with the least that can be kept of every layer, "
            f"{least / whole:.3g} is left. Layers that stay whole: {names or 'none'}."
        )
    if weigh is None:
        return uniform(groups, cost, most, multiples)
    return allocate(weigh(), cost, most, multiple_of=multiples)


def _require_sound(
    model: nn.Module, found: Survey, kept: Sequence[Sequence[int]], inputs: Tensor
) -> None:
    """Check the cut as a whole, as each group was checked with some channels."""
    exact = copy.deepcopy(model).double()
    few = inputs[:2].to(device_of(model)).double()
    reason = disagreement(exact, zip(found.groups, kept, strict=True), few)
    if reason is not None:
        raise ConvsimError(
            f"The channels chosen cannot be cut together: {reason}. Leave layers out with layers=…."
        )


def _take_modes_(small: nn.Module, model: nn.Module) -> None:
    """Give a network the modes of another: training or not, with gradients or without."""
    for module, like in zip(small.modules(), model.modules(), strict=True):
        module.training = like.training
    for parameter, whole in zip(small.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(whole.requires_grad)
