"""Sums over the ranks of a process group, which the settings identify by name."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group


def name(group: object) -> str | None:
    """The name of a group; None without one.

    Raises:
        TypeError: not a process group.
    """
    if group is None:
        return None
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"sync_group: got {group!r}, wanted a torch.distributed ProcessGroup")
    return group.group_name


def resolve(group: str) -> dist.ProcessGroup:
    """The process group of that name, in this process."""
    return _resolve_process_group(group)  # type: ignore[arg-type]


def size(group: str | None) -> int:
    """The number of ranks of a group; 1 without a group."""
    return 1 if group is None else resolve(group).size()


def total(value: Tensor, group: str | None) -> Tensor:
    """The sum of `value` over the ranks, without gradient; every rank must call it."""
    value = value.detach()
    if group is not None:
        value = value.clone()
        all_reduce(value, group)
    return value


def mean(value: Tensor, group: str | None) -> Tensor:
    """The mean of `value` over the ranks, without gradient; every rank must call it."""
    return value.detach() if group is None else total(value, group) / size(group)


def all_reduce(sums: Tensor, group: str) -> None:
    """Add `sums` over the ranks, in place. Every rank of the group must call it."""
    dist.all_reduce(sums, group=resolve(group))
