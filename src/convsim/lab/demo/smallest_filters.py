"""The usual way to make a network smaller, for comparison: drop the smallest filters."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convsim.errors import require


def without_smallest_filters(
    model: nn.Module, counts: Mapping[str, int], images: Tensor
) -> nn.Module:
    """Keep each layer's filters of greatest Euclidean norm, and estimate BatchNorm anew.

    Args:
        model: The network; it is left as it is.
        counts: How many filters to keep, by layer; layers that keep all, or are not named, are left
            alone.
        images: Prepared inputs, from which BatchNorm's statistics are taken again: without that,
            accuracy falls much further.

    Returns:
        A smaller network.

    Raises:
        MissingExtraError: If Torch-Pruning is not installed, which knows what belongs together.
    """
    pruning = require("torch_pruning", "shrink")
    small = copy.deepcopy(model).eval()
    graph = pruning.DependencyGraph().build_dependency(small, example_inputs=images[:2])
    for name, module in small.named_modules():
        if not isinstance(module, nn.Conv2d) or counts.get(name, len(module.weight)) == len(
            module.weight
        ):
            continue
        order = module.weight.detach().flatten(1).norm(dim=1).argsort()
        dropped = order[: len(order) - counts[name]].tolist()
        graph.get_pruning_group(module, pruning.prune_conv_out_channels, dropped).prune()
    _estimate_norms_(small, images)
    return small


@torch.no_grad()
def _estimate_norms_(model: nn.Module, images: Tensor) -> None:
    """Take BatchNorm's statistics from these images alone, as one average over batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for some in drawn.split(100):  # images may be sorted by class: each batch is like all
        model(images[some])
    model.eval()
