"""BatchNorms whose statistics follow what the smaller network computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import AxisKey, KeptAxes

_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def follow_norms_(
    small: nn.Module, original: nn.Module, axes: KeptAxes, batches: Sequence[Tensor]
) -> None:
    """Change every BatchNorm's mean and variance as what it reads has changed, in place.

    Both networks see the calibration images, normalized batch by batch. A mean is moved by the
    difference of the two networks' means, a variance multiplied by the quotient of their variances:
    so statistics of a network's training stay where nothing has changed, whatever the images.

    Args:
        small: The smaller network, in ``eval()`` mode.
        original: The original, likewise.
        axes: Which indices of the original's axes the smaller one has.
        batches: The calibration images; batches of one image are left out.

    Cost: a forward pass of either network.
    """
    several = [batch for batch in batches if len(batch) > 1]
    if not several or not _norms(small):
        return
    before, after = (_seen(network, several) for network in (original, small))
    of_original = _norms(original)
    for name, norm in _norms(small).items():
        trained = of_original[name]
        kept = axes.get(AxisKey(name, "channel"), range(trained.num_features))
        index = torch.tensor([*kept], device=norm.running_mean.device)
        (mean_K, variance_K), (old_M, spread_M) = after[name], before[name]
        moved_K = mean_K - old_M[index]
        wider_K = (variance_K + norm.eps) / (spread_M[index] + norm.eps)
        norm.running_mean.copy_(trained.running_mean[index] + moved_K)
        norm.running_var.copy_(trained.running_var[index] * wider_K)


def _norms(model: nn.Module) -> dict[str, Any]:
    """Find the BatchNorms with statistics of their own."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _seen(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of what every BatchNorm reads, itself and those before in use."""
    seeing = copy.deepcopy(model)
    for norm in _norms(seeing).values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    for batch in batches:
        seeing(batch.to(device_of(seeing)))
    return {name: (n.running_mean, n.running_var) for name, n in _norms(seeing).items()}
