"""What a run counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.ptx.floats import Array
from bench.ptx.program import Instruction, Program

SECTOR = 32


@dataclass(frozen=True)
class Line:
    """An instruction with its counts, summed over all programs.

    warps: how many warps issued it; lanes: for how many lanes it took effect (guard and branches
    considered). Of a global or shared access also: requests, one a warp with an active lane; width,
    bytes a lane; sectors, the different 32-byte sectors of each request, summed (0 if shared).
    """

    instruction: Instruction
    warps: int
    lanes: int
    requests: int
    width: int
    sectors: int


class Counts:
    """Counts of each instruction of a program, by its index."""

    def __init__(self, program: Program) -> None:
        n = len(program.instructions)
        self.program = program
        self.warps, self.lanes, self.requests, self.sectors = ([0] * n for _ in range(4))
        self.widths = [access_width(i) for i in program.instructions]
        self.is_global = ["global" in i.parts for i in program.instructions]

    def __iter__(self) -> Iterator[Line]:
        """The instructions in the order of the code."""
        each = zip(self.program.instructions, self.warps, self.lanes, self.requests, self.widths,
                   self.sectors, strict=True)  # fmt: skip
        return (Line(*line) for line in each)

    def group(self, mask: Array | None, shape: tuple[int, int]) -> tuple[int, int]:
        """Warps and lanes of a group of lanes."""
        if mask is None:
            return shape[0], shape[0] * shape[1]
        return int(mask.any(1).sum()), int(np.count_nonzero(mask))

    def step(
        self,
        at: int,
        group: tuple[int, int],
        active: Array | None,
        mask: Array | None,
    ) -> None:
        """A group issues an instruction for its active lanes."""
        self.warps[at] += group[0]
        if active is None or active is mask:
            self.lanes[at] += group[1]
        else:
            self.lanes[at] += int(np.count_nonzero(active))

    def access(self, at: int, addresses: Array, mask: Array | None) -> None:
        """A memory access of the active lanes, at addresses [warps, 32]."""
        self.requests[at] += len(addresses) if mask is None else int(mask.any(1).sum())
        if self.is_global[at]:
            self.sectors[at] += count_sectors(addresses, mask)


def count_sectors(addresses: Array, mask: Array | None) -> int:
    """The different sectors of each warp's request, summed over the warps."""
    sectors = addresses // SECTOR
    if mask is not None:
        sectors = np.where(mask, sectors, -1)
    steps = sectors[:, 1:] - sectors[:, :-1]
    if (steps < 0).any():
        sectors = np.sort(sectors, axis=1)
        steps = sectors[:, 1:] - sectors[:, :-1]
    found = int(np.count_nonzero(steps)) + len(sectors)
    return found if mask is None else found - int((~mask).any(1).sum())


def access_width(instruction: Instruction) -> int:
    """Bytes a lane of a memory access; 0 for other instructions and parameters."""
    parts = instruction.parts
    if parts[0] in ("ldmatrix", "stmatrix"):
        return 4 * int(parts[3][1])
    if parts[0] not in ("ld", "st", "atom", "red") or "param" in parts:
        return 0
    vector = next((int(p[1:]) for p in parts if p in ("v2", "v4")), 1)
    return vector * int(parts[-1].lstrip("bfsu")) // 8
