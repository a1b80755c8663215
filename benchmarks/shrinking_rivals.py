"""What else makes a trained network smaller, by its formulas, on the groups that convsim finds.

A criterion scores the channels of a group, summed over the layers that put them out; those with the
largest scores stay. A merger tells the maps that go by those that stay, from the weights alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.channels import Group, Slot, cut_, kept_axes
from convsim.shrinking.survey import Survey
from convsim.shrinking.weights import filters_of, set_filters_

Score = Callable[[nn.Module, Slot, Tensor], Tensor]
"""(network with gradients of the task's loss, axis of filters, filters (O, P)) → (O,)."""


def filters(model: nn.Module, slot: Slot) -> Tensor:
    """Return a layer's filters as rows: (O, P)."""
    return filters_of(model.get_submodule(slot.key.name)).flatten(0, 1).flatten(1)


def norm_after(model: nn.Module, slot: Slot, found: Survey) -> Any:
    """Return the BatchNorm after a layer, None without."""
    fate = found.fates.get(slot.key.name)
    return None if fate is None or fate.norm is None else model.get_submodule(fate.norm)


def l1(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """Li et al. 2017."""
    return w_OP.abs().sum(1)


def l2(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """He et al. 2018, soft filter pruning."""
    return w_OP.norm(dim=1)


def fpgm(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """He et al. 2019: the distances to all other filters, least near the geometric median."""
    return torch.cdist(w_OP, w_OP).sum(1)


def lamp(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """Lee et al. 2021: a square over the sum of all squares that are no smaller."""
    square_O, order_O = w_OP.square().sum(1).sort()
    score_O = square_O / square_O.flip(0).cumsum(0).flip(0)
    return torch.empty_like(score_O).scatter_(0, order_O, score_O)


def taylor(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """Molchanov et al. 2019: (Σ w ∂L/∂w)², with labels."""
    module: Any = model.get_submodule(slot.key.name)
    gradient = copy.copy(module)
    gradient._parameters = {**module._parameters, "weight": nn.Parameter(module.weight.grad)}
    g_OP = filters_of(gradient).flatten(0, 1).flatten(1)
    return (w_OP * g_OP).sum(1).square()


def hessian(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """LeCun et al. 1989, with the squares of single images' gradients as the diagonal."""
    module: Any = model.get_submodule(slot.key.name)
    squares = copy.copy(module)
    squares._parameters = {**module._parameters, "weight": nn.Parameter(module.weight.squares)}
    h_OP = filters_of(squares).flatten(0, 1).flatten(1)
    return (w_OP.square() * h_OP).sum(1)


def drawn(model: nn.Module, slot: Slot, w_OP: Tensor) -> Tensor:
    """Score at random."""
    return torch.rand(len(w_OP), generator=torch.Generator().manual_seed(len(slot.key.name)))


CRITERIA: dict[str, Score] = {
    "L1": l1, "L2": l2, "FPGM": fpgm, "LAMP": lamp, "Taylor": taylor, "Hessian": hessian,
    "random": drawn,
}  # fmt: skip


def score_gradients_(model: nn.Module, inputs: Tensor, labels: Tensor, one_by_one: int) -> None:
    """Leave the gradients of the task's loss in a network's weights, and squares of single ones.

    Args:
        model: The network, in ``eval()`` mode.
        inputs: Images.
        labels: Their labels.
        one_by_one: Of how many images the gradients are squared and added up, as ``.squares``.
    """
    loss = nn.functional.cross_entropy
    weights = [p for p in model.parameters() if p.requires_grad]
    squares = [torch.zeros_like(p) for p in weights]
    for x, y in zip(inputs[:one_by_one].split(1), labels[:one_by_one].split(1), strict=True):
        gradients = torch.autograd.grad(loss(model(x), y), weights)
        torch._foreach_addcmul_(squares, gradients, gradients)
    for weight, square in zip(weights, squares, strict=True):
        weight.squares = square  # type: ignore[attr-defined]
    model.zero_grad()
    for x, y in zip(inputs.split(100), labels.split(100), strict=True):
        loss(model(x), y).backward()


def batch_norm_scale(model: nn.Module, found: Survey, slot: Slot) -> Tensor:
    """Liu et al. 2017, network slimming: |γ|; the filter's norm where no BatchNorm follows."""
    norm = norm_after(model, slot, found)
    return l2(model, slot, filters(model, slot)) if norm is None else norm.weight.detach().abs()


def chosen(name: str, model: nn.Module, found: Survey, counts: Sequence[int]) -> list[list[int]]:
    """Choose `counts` units of every group by a criterion."""
    kept = []
    for group, count in zip(found.groups, counts, strict=True):
        score_M = torch.zeros(group.channels)
        for slot in group.producers:
            if name == "BN scale":
                own_O = batch_norm_scale(model, found, slot)
            else:
                own_O = CRITERIA[name](model, slot, filters(model, slot))
            for index, channel in enumerate(slot.channels):
                score_M[channel] += float(own_O[index])
        units = torch.stack([score_M[list(unit)].sum() for unit in group.units])
        best = units.topk(count).indices.tolist()
        kept.append(sorted(c for unit in best for c in group.units[unit]))
    return kept


def cut(model: nn.Module, found: Survey, kept: Sequence[Sequence[int]]) -> nn.Module:
    """Cut without any compensation."""
    small = copy.deepcopy(model)
    cut_(small, kept_axes(zip(found.groups, kept, strict=True)))
    return small


def normalized_rows(model: nn.Module, found: Survey, group: Group) -> Tensor:
    """Return what tells maps of a group apart: filters, normalized, with their shift: (M, P)."""
    parts = []
    for slot in group.producers:
        w_OP, norm = filters(model, slot), norm_after(model, slot, found)
        if norm is not None:
            scale_O = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift_O = norm.bias - scale_O * norm.running_mean
            w_OP = torch.cat([w_OP * scale_O[:, None], shift_O[:, None]], 1)
        w_MP = torch.zeros(group.channels, w_OP.shape[1])
        for index, channel in enumerate(slot.channels):
            if channel >= 0:
                w_MP[channel] = w_OP[index].detach()
        parts.append(w_MP)
    return torch.cat(parts, 1)


def neuron_merging(
    model: nn.Module, found: Survey, kept: Sequence[Sequence[int]], least: float = 0.45
) -> nn.Module:
    """Kim et al. 2020: a lost filter is the most similar kept one, scaled, if similar enough."""
    small = copy.deepcopy(model)
    for group, readers, channels in zip(found.groups, found.consumers, kept, strict=True):
        rows_MP = normalized_rows(model, found, group)
        norm_M = rows_MP.norm(dim=1).clamp_min(1e-12)
        cosine_MK = (rows_MP @ rows_MP[channels].T) / norm_M[:, None] / norm_M[channels][None]
        value_M, place_M = cosine_MK.max(1)
        a_MK = torch.zeros(len(rows_MP), len(channels))
        told_M = value_M >= least
        rows = torch.arange(len(rows_MP))[told_M]
        a_MK[rows, place_M[told_M]] = (norm_M / norm_M[channels][place_M])[told_M]
        a_MK[channels] = torch.eye(len(channels))
        for one in readers:
            read_differently_(small, one, channels, a_MK)
    return cut(small, found, kept)


def folding(model: nn.Module, found: Survey, counts: Sequence[int]) -> nn.Module:
    """Wang et al. 2025, model folding: k-means of channels; means put out, sums read.

    As in the authors' osaukh/folding_as_projection, a channel is told apart by everything that goes
    with it: its filters as they are, the scale and shift after them, and what its consumers weigh
    it with; means are taken of weights, of scale and shift and of BatchNorm's statistics alike.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415

    small = copy.deepcopy(model)
    kept = []
    for group, readers, count in zip(found.groups, found.consumers, counts, strict=True):
        rows_MP = everything_of(model, found, group)
        means = KMeans(count, n_init=10, random_state=0).fit(rows_MP.numpy())
        cluster_M = torch.as_tensor(means.labels_)
        first = [int((cluster_M == k).nonzero()[0]) for k in cluster_M.unique()]
        spare = [m for m in range(len(rows_MP)) if m not in first]
        channels = sorted(first + spare[: count - len(first)])
        a_MK = torch.zeros(len(rows_MP), count)
        for m in range(len(rows_MP)):
            owner = next(f for f in first if cluster_M[f] == cluster_M[m])
            a_MK[m, channels.index(owner)] = 1.0
        average_(small, group, cluster_M, first)
        for one in readers:
            read_differently_(small, one, channels, a_MK)
        kept.append(channels)
    return cut(small, found, kept)


def everything_of(model: nn.Module, found: Survey, group: Group) -> Tensor:
    """Return all weights that go with each map of a group: (M, P)."""
    parts = [torch.zeros(group.channels, 0)]
    for slot in group.slots:
        module: Any = model.get_submodule(slot.key.name)
        if slot.key.role == "input":
            rows = [filters_of(module)[0].transpose(0, 1).flatten(1)]
        elif slot.key.role == "output" or module.weight.dim() > 1:
            rows = [filters(model, slot)]
        else:
            rows = [p.detach()[:, None] for p in module.parameters(recurse=False)]
        for row_IP in rows:
            row_MP = torch.zeros(group.channels, row_IP.shape[1] * _times(slot))
            for channel in {*slot.channels} - {-1}:
                where = [i for i, c in enumerate(slot.channels) if c == channel]
                row_MP[channel] = row_IP[where].flatten()
            parts.append(row_MP)
    return torch.cat(parts, 1)


def _times(slot: Slot) -> int:
    """Tell how often each channel is on an axis."""
    return slot.channels.count(max(slot.channels))


def average_(model: nn.Module, group: Group, cluster_M: Tensor, first: Sequence[int]) -> None:
    """Let the first channel of each cluster be the mean of all of it."""
    for slot in group.slots:
        if slot.key.role == "input":
            continue
        module: Any = model.get_submodule(slot.key.name)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not tensor.dim():
                continue
            rows = (
                tensor.data.transpose(0, 1)
                if getattr(module, "transposed", False) and (tensor.dim() > 1)
                else tensor.data
            )
            whole = rows.clone()
            for channel in first:
                members = cluster_M == cluster_M[channel]
                index = [i for i, c in enumerate(slot.channels) if c >= 0 and members[c]]
                rows[slot.channels.index(channel)] = whole[index].mean(0)


def read_differently_(model: nn.Module, consumer: Any, kept: Sequence[int], a_MK: Tensor) -> None:
    """Let a consumer read W·A of the kept maps; of ungrouped consumers alone."""
    module = model.get_submodule(consumer.name)
    filters_GOCn = filters_of(module).clone()
    if len(filters_GOCn) > 1:
        raise NotImplementedError("a grouped consumer")
    new_GOCn = filters_GOCn.clone()
    maps_m = consumer.maps_m.tolist()
    for places_m in consumer.places_mt.unbind(1):
        place = dict(zip(maps_m, places_m.tolist(), strict=True))
        w_OMn = filters_GOCn[0][:, places_m]
        new_GOCn[0][:, places_m] = 0
        told_OKn = torch.einsum("omn,mk->okn", w_OMn, a_MK[maps_m])
        for k, channel in enumerate(kept):
            new_GOCn[0][:, place[channel]] = told_OKn[:, k]
    set_filters_(module, new_GOCn)


@torch.no_grad()
def reestimated(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Let every BatchNorm take its statistics anew from calibration images."""
    small = copy.deepcopy(model).eval()
    for module in small.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for batch in batches:
        small(batch)
    return small.eval()
