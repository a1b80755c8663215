"""The processes that train one network together, as torchrun has started them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those of all nodes; without torchrun it is alone.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        on_node: How many of them are on each node.
    """

    rank: int = 0
    count: int = 1
    on_node: int = 1

    def share(self, batch: list[int]) -> list[int]:
        """Take this process' share of a batch: all are equal, so a few indices may come twice."""
        each = -(-len(batch) // self.count)
        return (batch * self.count)[: each * self.count][self.rank :: self.count]


def processes() -> Processes:
    """Read what torchrun has set."""
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return Processes()
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))
