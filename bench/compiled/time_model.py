"""How long an H100 would take for a kernel, from counts alone. Nothing of it was measured.

The larger of three bounds: the bytes that DRAM moves; the busiest pipe, or the issue of
instructions; and the latency of one warp on its own, for as many waves of programs as there are.
They overlap perfectly, so a prediction is low rather than high. What the last program does when all
others have ended comes after that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.compiled.latency import DRAM, alone
from bench.compiled.path import Path
from bench.compiled.sass import CLASSES

SMS = 132
SCHEDULERS = 4
"""Of an SM; each issues a warp instruction a cycle (H100 SXM, NVIDIA's H100 white paper)."""
CYCLES = 1_755.0
"""A microsecond: 1.755 GHz."""
BANDWIDTH = 3.0e6
"""Bytes a microsecond: a copy's on an H100 SXM, 3.0 of the 3.35 TB/s of its HBM3."""
SLOTS: Mapping[str, int] = {"FP32": 1, "ALU": 2, "IMAD": 2, "MUFU": 8, "FP64": 2}
"""Cycles that a warp instruction keeps a scheduler's pipe: 32 by the lanes that it has for it (CUDA
C++ Programming Guide, arithmetic instructions, compute capability 9.0)."""
SHARED_PIPE = ("shuffle", "load", "store", "shared")
"""One a cycle for the whole SM."""
REACHED = 0.85
"""Share of a pipe's peak that kernels reach: assumed."""
LAUNCH = 2.0
"""Microseconds of a launch in a row of them: assumed."""
REGISTERS, WARPS, PROGRAMS, SHARED = 65_536, 64, 32, 227 * 1024
"""Of an SM: registers, resident warps and programs, bytes of shared memory, of which each program
takes 1 KiB more than it asks for (CUDA C++ Programming Guide, compute capability 9.0)."""

ASSUMPTIONS = (
    f"predicted for an H100 SXM, not measured: {SMS} SMs x {SCHEDULERS} schedulers, a warp "
    f"instruction a cycle each, {CYCLES / 1000:g} GHz, {BANDWIDTH / 1e6:g} TB/s; cycles of a pipe: "
    + ", ".join(f"{name} {cycles}" for name, cycles in SLOTS.items())
    + f"; time = max(bytes, latency of one warp x waves, busiest pipe / {REACHED}), "
    f"then the latency of what the last program does alone, and {LAUNCH:g} us for each launch"
)


@dataclass(frozen=True)
class Kernel:
    """What the model needs to know of a launch.

    Attributes:
        path: of all its warps.
        warps: of a program.
        moved: bytes of global memory, each counted once.
    """

    path: Path
    programs: int
    warps: int
    registers: int
    shared: int
    moved: float


def by_class(path: Path) -> Counter[str]:
    """Warp instructions by class."""
    found: Counter[str] = Counter(dict.fromkeys(CLASSES, 0))
    for instruction, count in zip(path.program.instructions, path.counts, strict=True):
        found[instruction.kind] += count  # type: ignore[assignment]  # a float
    return found


def bounds(kernel: Kernel) -> dict[str, float]:
    """Microseconds by bound: issue, the pipes, bytes, latency."""
    counts = by_class(kernel.path)
    each = 1 / SMS / CYCLES
    found = {
        name: counts[name] * cycles * each / SCHEDULERS / REACHED for name, cycles in SLOTS.items()
    }
    # FP32 goes through two halves of a pipe, of which one has integers, too.
    both = (counts["FP32"] + counts["IMAD"]) * each / SCHEDULERS / REACHED
    found["FP32"] = max(found["FP32"], both)
    found["shared pipe"] = sum(counts[name] for name in SHARED_PIPE) * each / REACHED
    found["issue"] = kernel.path.issued * each / SCHEDULERS / REACHED
    found["bytes"] = kernel.moved / BANDWIDTH
    waves = kernel.programs / (SMS * resident(kernel))
    found["latency"] = max(1.0, waves) * alone(kernel.path, DRAM) / CYCLES
    return found


def finish(kernel: Kernel) -> float:
    """Microseconds of what only the program that comes last does."""
    return (alone(kernel.path, DRAM, last=True) - alone(kernel.path, DRAM)) / CYCLES


def resident(kernel: Kernel) -> int:
    """Programs that an SM holds at a time; registers are given out 256 at a time to a warp."""
    of_warp = -(-kernel.registers * 32 // 256) * 256
    return max(
        1,
        min(
            REGISTERS // of_warp // kernel.warps,
            WARPS // kernel.warps,
            PROGRAMS,
            SHARED // (kernel.shared + 1024),
        ),
    )


def predicted(kernels: Iterable[Kernel]) -> float:
    """Microseconds of launches in a row."""
    return sum(LAUNCH + max(bounds(kernel).values()) + finish(kernel) for kernel in kernels)


def copy_floor(rows: int, columns: int, itemsize: int) -> float:
    """Microseconds of reading the logits twice and writing their gradient once."""
    return 3 * rows * columns * itemsize / BANDWIDTH
