"""The processes of a run: one alone, or those that torchrun started.

    torchrun --nproc-per-node 2 -m detectors train ...

Rank 0 leads: it alone writes and prints. Tensors on the CPU travel by gloo, on GPUs by NCCL.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from detectors.errors import RunError
from detectors.utils import locks

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other; rank 0 computes AP while the others wait."""


MESSAGE = 1000
"""Bytes of a message that ranks exchange."""


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        group: of all of them; None: this process is alone.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the ranks of `numbers`, of the same shape on all of them."""
        if self.group is not None:
            dist.all_reduce(numbers, group=self.group)
        return numbers

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Every rank's rows [n, ...] (on the CPU, n its own), on rank 0; elsewhere nothing."""
        if self.group is None:
            return [rows]
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        counts = self.sum(counts)
        padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in range(self.size)] if self.leads else None
        dist.gather(padded, every, group=self.group)
        return [part[:n] for part, n in zip(every or [], counts.tolist(), strict=False)]

    def tell(self, message: str) -> list[str]:
        """Every rank's message, "" for those that have none, cut off at MESSAGE bytes."""
        if self.group is None:
            return [message]
        mine = torch.zeros(MESSAGE, dtype=torch.uint8)
        text = message.encode()[:MESSAGE]
        mine[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.group)
        return [bytes(m.tolist()).rstrip(b"\0").decode(errors="replace") for m in every]

    @contextmanager
    def claimed(self, folder: Path) -> Iterator[None]:
        """Let the ranks, of which one writes, be the only ones to write into a folder.

        Raises:
            RunError: on all of them, as locks.claimed.
        """
        with ExitStack() as stack:
            problem = ""
            if self.leads:
                try:
                    stack.enter_context(locks.claimed(folder))
                except RunError as error:
                    problem = str(error)
            for refusal in filter(None, self.tell(problem)):
                raise RunError(refusal)
            yield

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Make these tensors on every rank what they are on rank 0."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor, 0, group=self.group)

    def wait(self) -> None:
        """Until every rank has come here."""
        self.sum(torch.zeros(1))


ALONE = World()


def means_lost(error: Exception) -> bool:
    """Whether this is how torch reports that another rank has ended or cannot be reached."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def connected(device: str) -> Iterator[World]:
    """The world of this process, whose tensors are on `device`, "cpu" or "cuda"."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        group = dist.group.WORLD
        yield World(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group()
