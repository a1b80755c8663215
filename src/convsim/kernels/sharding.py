"""A weight whose parts lie on several processes: gathered, or read as this process' filters.

`torch.distributed.tensor` says where the parts lie, whoever cut them: FSDP2, HSDP, tensor parallel.
A weight cut between whole filters (as by FSDP2) can stay where it is for a penalty that needs other
filters only as a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """All filters of a layer; a bank holds those of this rank.

    Attributes:
        process_group: The ranks that hold them all, each once.
        groups: How many groups the layer has on all ranks.
        filters: How many filters each of them has.
    """

    process_group: Any
    groups: int
    filters: int

    @property
    def splits_a_group(self) -> bool:
        """Whether filters of one group lie on several ranks."""
        return self.groups == 1

    def groups_in(self, weight: Tensor) -> int:
        """Count the groups in this rank's part of the weight: whole ones, or one in parts."""
        return 1 if self.splits_a_group else len(weight) // self.filters


def is_sharded(weight: Tensor) -> bool:
    """Tell whether a weight is a DTensor, whether this process holds all of it or a part."""
    return hasattr(weight, "full_tensor")


def gather(weight: Any) -> Tensor:
    """Gather a DTensor on all of its ranks; gradients, the same on all, go back to the parts."""
    whole: Tensor = weight.full_tensor()
    return whole


def share_of(weight: Any, groups: int) -> Share | None:
    """See a DTensor (groups · filters, …) as whole filters on each rank.

    Returns:
        None where it is cut along another axis, along two axes of the mesh, or inside one of
        several groups, and where it is not sharded at all.
    """
    from torch.distributed.tensor import Shard  # noqa: PLC0415 - optional

    cuts = [axis for axis, p in enumerate(weight.placements) if not p.is_replicate()]
    if len(cuts) != 1:
        return None
    (axis,) = cuts
    placement, mesh = weight.placements[axis], weight.device_mesh
    filters = weight.shape[0] // groups
    longest = -(-weight.shape[0] // mesh.size(axis))  # ranks before the last ones hold this many
    if type(placement) is not Shard or placement.dim != 0 or (groups > 1 and longest % filters):
        return None
    return Share(mesh.get_group(axis), groups, filters)


def local_filters(weight: Any, share: Share) -> Tensor:
    """Take this rank's part, differentiable; if it is empty, zeros, which are similar to none.

    Of zeros one whole group, or a single filter where groups are cut.
    """
    own: Tensor = weight.to_local()
    return (
        own
        if len(own)
        else own.new_zeros(1 if share.splits_a_group else share.filters, *own.shape[1:])
    )


def lay_out_like(whole: Tensor, weight: Any) -> Tensor:
    """Cut a whole tensor, the same on all ranks, as a DTensor is cut."""
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - optional

    return distribute_tensor(whole, weight.device_mesh, weight.placements)
