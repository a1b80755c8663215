"""What a layer before a ReLU should tell: to that all negative numbers are the same.

Shape suffixes: S samples, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsim.shrinking.topology import norm_scale


@dataclass(frozen=True)
class Rectifier:
    """A ReLU that reads scale · y + shift of what a layer tells.

    Attributes:
        scale: (O,), or 1.
        shift: (O,), or 0.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def behind(cls, norm: Any, of_kept: Callable[[Tensor], Tensor]) -> Rectifier:
        """Take one behind a BatchNorm in ``eval()`` mode, or behind none, for the outputs kept."""
        if norm is None:
            return cls(torch.ones(()), torch.zeros(()))
        scale_O = norm_scale(norm)
        bias_O = torch.zeros_like(scale_O) if norm.bias is None else norm.bias.detach()
        return cls(of_kept(scale_O), of_kept(bias_O - scale_O * norm.running_mean))

    def targets(self, want_SO: Tensor, told_SO: Tensor) -> Tensor:
        """Return T, a least-squares fit to which brings what the ReLU hears nearer to before.

        In units of what the ReLU reads, (T − ŷ)² plus a number is nowhere below
        (relu(y) − relu(ŷ))², and equal to it at the ŷ told now. So a fit to T lowers that sum.
        """
        scale_O, shift_O = self.scale.to(told_SO), self.shift.to(told_SO)
        silent_SO = scale_O * told_SO + shift_O < 0
        heard_SO = (scale_O * want_SO + shift_O > 0) | (scale_O == 0)
        begins_O = torch.where(scale_O == 0, 0, -shift_O / scale_O)
        return torch.where(silent_SO, told_SO, torch.where(heard_SO, want_SO, begins_O))
