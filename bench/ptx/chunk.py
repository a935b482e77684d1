"""Programs that run side by side: registers and memory, every lane an element of numpy arrays."""

from collections.abc import Sequence

import numpy as np

from bench.ptx.counts import Counts
from bench.ptx.floats import Array
from bench.ptx.memory import GlobalMemory
from bench.ptx.program import Program
from bench.ptx.races import Now
from bench.ptx.shared import SharedMemory

WARP = 32
SPECIAL = ("%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z",
           "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid")  # fmt: skip

Mask = Array | None  # the active lanes [warps, 32]; None: all


def constant(value: int | Array, dtype: np.dtype) -> Array:
    """A [1, 1] array of a number's bits."""
    bits = int(value) & ((1 << 8 * dtype.itemsize) - 1)
    return np.full((1, 1), bits, f"u{dtype.itemsize}").view(dtype)


class Chunk:
    """Programs that run together: their registers, their shared memory, where they are.

    Arrays are [warps, 32]; the warps of a program are next to each other.
    """

    def __init__(
        self,
        program: Program,
        programs: Array,
        grid: int,
        parameters: Sequence[int],
        memory: GlobalMemory,
        shared: SharedMemory,
        counts: Counts,
        poison: int,
    ) -> None:
        self.program, self.programs, self.parameters = program, programs, parameters
        self.memory, self.counts = memory, counts
        self.warps = program.threads // WARP  # of a program
        self.shape = (len(programs) * self.warps, WARP)
        self.everyone = np.ones(self.shape, bool)
        lanes = np.arange(program.threads, dtype=np.int64).reshape(self.warps, WARP)
        self.thread = np.tile(lanes, (len(programs), 1))
        self.program_of = np.repeat(programs, self.warps)[:, None]  # [warps, 1]
        self.local = np.repeat(np.arange(len(programs)), self.warps)[:, None]
        self.clocks = memory.clocks
        self.shared = shared
        fixed = {"%ntid.x": program.threads, "%nctaid.x": grid, "%nctaid.y": 1,
                 "%nctaid.z": 1}  # fmt: skip
        self.special = {name: np.full((1, 1), fixed.get(name, 0)) for name in SPECIAL}
        self.special |= {
            "%tid.x": self.thread,
            "%ctaid.x": self.program_of,
            "%laneid": self.thread[:1] % WARP,
        }
        undefined = {
            bits: np.full((1, 1), poison & 1, bool)
            if bits == 1
            else constant(poison * 0x0101010101010101, np.dtype(f"u{bits // 8}"))
            for bits in set(program.registers)
        }
        self.registers = [undefined[bits] for bits in program.registers]
        self.here = 0
        self.stamps: Array | None = None

    def lanes(self, values: Array, mask: Mask) -> Array:
        """The active lanes' numbers, one after the other."""
        if values.shape != self.shape:
            values = np.broadcast_to(values, self.shape if mask is None else mask.shape)
        return values.reshape(-1) if mask is None else values[mask]

    def spread(self, values: Array, mask: Mask) -> Array:
        """[warps, 32] with these in the active lanes."""
        if mask is None:
            return np.ascontiguousarray(values).reshape(self.shape)
        made = np.zeros(self.shape, values.dtype)
        made[mask] = values
        return made

    def now(self, mask: Mask, flags: int = 0) -> Now:
        """Who the active lanes are."""
        if self.stamps is None:
            phases = self.clocks.stamps(self.programs).reshape(-1, 1)
            self.stamps = phases | self.thread
        stamps = self.stamps | flags if flags else self.stamps
        return Now(self.lanes(stamps, mask), self.lanes(self.program_of, mask))

    def changed(self) -> None:
        """The clocks have moved."""
        self.stamps = None

    def count(self, addresses: Array, mask: Mask) -> None:
        """Count a memory access of the present instruction."""
        self.counts.access(self.here, self.spread(addresses, mask), mask)
