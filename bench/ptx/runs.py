"""From a launch to its PTX, and from there to an execution on the CPU."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton._utils import get_iterable_path

from bench.ahead_of_time import TARGETS, compile_source, source_of
from bench.ptx.chunk import Chunk
from bench.ptx.counts import Counts
from bench.ptx.decode import Code
from bench.ptx.errors import PtxError
from bench.ptx.machine import Machine
from bench.ptx.memory import Buffer, GlobalMemory, Role
from bench.ptx.program import parse
from bench.ptx.races import Clocks
from bench.ptx.shared import SharedMemory
from jolkernels.kernels.launch import Launch

LANES = 32_768  # of a chunk: a register of 4-byte numbers then fits a core's cache
Order = str | int | list[int]  # "forward", "reverse", the seed of a random one, or some programs


@dataclass
class Compiled:
    """A kernel for one signature: what Triton returned, and its PTX made ready."""

    kernel: Any
    code: Code
    shared: int  # bytes of shared memory a program


@dataclass
class Execution:
    """One run of a launch: its counts, over all programs."""

    compiled: Compiled
    programs: int
    counts: Counts
    loaded_sectors: int = 0  # different 32-byte sectors of global memory that were loaded
    stored_sectors: int = 0

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.compiled.code.program.name


CACHE: dict[str, Compiled] = {}


def compiled(call: Launch, target: str = "sm_90", *, float_atomics: bool = False) -> Compiled:
    """The launch's kernel for sm_80, sm_90 or sm_100, compiled once for each signature."""
    if target not in TARGETS or TARGETS[target].backend != "cuda":
        raise PtxError(f"target: got {target!r}, wanted sm_80, sm_90 or sm_100")
    source, options = source_of(call)
    key = f"{target} {float_atomics} {source.hash()} {sorted(options.items())}"
    if key not in CACHE:
        kernel = compile_source(source, options, TARGETS[target])
        code = Code(parse(kernel.asm["ptx"]), float_atomics=float_atomics)
        CACHE[key] = Compiled(kernel, code, kernel.metadata.shared)
    return CACHE[key]


def run(
    call: Launch,
    outputs: Collection[str],
    *,
    workspace: Collection[str] = (),
    scratch: Collection[str] = (),
    target: str = "sm_90",
    order: Order = "forward",
    parts: int = 1,
    poison: int = 0xFF,
    float_atomics: bool = False,
) -> Execution:
    """Run a launch on the CPU, as compiled for a target, on its tensors in place.

    Args:
        call: the launch, of tensors on the CPU.
        outputs: names of the kernel's arguments that hold nothing yet and must be filled; that of
            a tuple means all its tensors, "x[0]" one of them.
        workspace: names of arguments that hold nothing yet, and need not be filled.
        scratch: names of arguments that hold something and may be written.
        target: sm_80, sm_90 or sm_100.
        order: of the programs: "forward", "reverse" or the seed of a random one; or the numbers of
            those that run, of a launch too large to run whole.
        parts: how many chunks, the programs that run side by side, there are at least.
        poison: byte that fills registers before anything is in them.
        float_atomics: allow sums that depend on the order of the programs.

    Raises:
        PtxError: what the checks of this package find, in one line.
    """
    return execute(
        compiled(call, target, float_atomics=float_atomics),
        call,
        outputs,
        workspace=workspace,
        scratch=scratch,
        order=order,
        parts=parts,
        poison=poison,
    )


def execute(
    made: Compiled,
    call: Launch,
    outputs: Collection[str],
    *,
    workspace: Collection[str] = (),
    scratch: Collection[str] = (),
    order: Order = "forward",
    parts: int = 1,
    poison: int = 0xFF,
) -> Execution:
    """`run` a kernel that is compiled already, maybe for other arguments."""
    program = made.code.program
    counts = Counts(program)
    done = Execution(made, call.programs, counts)
    if not call.programs:
        return done
    clocks = Clocks(call.programs, program.threads // 32)
    roles = {Role.OUTPUT: outputs, Role.WORKSPACE: workspace, Role.SCRATCH: scratch}
    memory = GlobalMemory(buffers(call, roles), clocks)
    parameters = parameters_of(passed(made, call), memory)
    if len(parameters) != len(program.parameters):
        raise PtxError(f"{program.name}: {len(parameters)} arguments for {len(program.parameters)}")
    count = max(1, min(LANES // program.threads, -(-call.programs // parts)))
    programs = in_order(call.programs, order)
    for start in range(0, len(programs), count):
        some = programs[start : start + count]
        shared = SharedMemory(len(some), made.shared, made.code.shared_cell)
        chunk = Chunk(program, some, call.programs, parameters, memory, shared, counts, poison)
        Machine(made.code, chunk).run()
    memory.check_written()
    done.loaded_sectors, done.stored_sectors = (
        sum(int(r.touched[kind].sum()) for r in memory.regions) for kind in ("ld", "st")
    )
    return done


def in_order(count: int, order: Order) -> np.ndarray:
    """The programs' numbers in the order in which they run."""
    programs = np.arange(count)
    if isinstance(order, int):
        return np.random.default_rng(order).permutation(programs)
    if isinstance(order, list):
        return programs[order]
    if order not in ("forward", "reverse"):
        raise PtxError(f"order: got {order!r}, wanted forward, reverse or a seed")
    return programs if order == "forward" else programs[::-1].copy()


def named_arguments(call: Launch) -> list[tuple[str, Any]]:
    """The arguments of a launch that are none of compile time, by name: "x[0]" of a tuple x."""
    return [(name, value) for name, _, value in elements(call)]


def elements(call: Launch) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Name, path as Triton has it and value of each argument, and of each element of a tuple."""

    def of(name: str, path: tuple[int, ...], value: Any) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(value, tuple):
            for i, each in enumerate(value):
                yield from of(f"{name}[{i}]", (*path, i), each)
        else:
            yield name, path, value

    given = [(i, p.name) for i, p in enumerate(call.plan.kernel.params) if not p.is_constexpr]
    for (i, name), value in zip(given, call.arguments, strict=True):
        yield from of(name, (i,), value)


def argument(name: str) -> str:
    """The argument that a name of `named_arguments` is of."""
    return name.partition("[")[0]


def buffers(call: Launch, roles: Mapping[Role, Collection[str]]) -> list[Buffer]:
    """The tensors of a launch, which are inputs unless one of `roles` has their names.

    The name of a tuple means all of its tensors.
    """
    given = {name: v for name, v in named_arguments(call) if isinstance(v, Tensor)}
    role = {name: each for each, names in roles.items() for name in names}
    known = {*given, *map(argument, given)}
    if unknown := [name for name in role if name not in known]:
        raise PtxError(f"{unknown[0]}: no tensor argument of {call.plan.kernel.fn.__name__}")
    made = []
    for name, tensor in given.items():
        if tensor.device.type != "cpu":
            raise PtxError(f"{name}: got a tensor on {tensor.device}, wanted the CPU")
        each = role.get(name, role.get(argument(name), Role.INPUT))
        made.append(Buffer(name, tensor, each))
    return made


def passed(made: Compiled, call: Launch) -> list[tuple[str, Any, str]]:
    """Name, value and type of each parameter of the compiled code, which has the rest built in."""
    constants, signature = made.kernel.src.constants, list(made.kernel.src.signature.values())
    return [
        (name, value, get_iterable_path(signature, path))
        for name, path, value in elements(call)
        if path not in constants
    ]


def parameters_of(arguments: Sequence[tuple[str, Any, str]], memory: GlobalMemory) -> list[int]:
    """The kernel's parameters as integers, those of floating-point numbers their bits.

    Triton adds two pointers for scratch memory, which its code here does not use.
    """
    made = []
    for name, value, kind in arguments:
        if isinstance(value, Tensor):
            made.append(memory.address(name))
        elif kind == "fp64":
            made.append(int(np.float64(value).view(np.uint64)))
        elif isinstance(value, int):
            made.append(value)
        else:
            raise PtxError(f"{name}: got {value!r}, wanted a tensor, an integer or a float64")
    return [*made, 0, 0]


ORDERS: tuple[dict[str, Any], ...] = (
    {"order": "forward"},
    {"order": "reverse", "parts": 3, "poison": 0x00},
    {"order": 1, "parts": 2, "poison": 0x3F},
)


def in_all_orders(
    compute: Callable[..., tuple[Sequence[Tensor | None], Any]],
    orders: Sequence[dict[str, Any]] = ORDERS,
) -> Any:
    """`compute(**options)` with each of `orders` as options of `run`; what the first returned.

    `compute` returns the tensors to compare, and anything else.

    Raises:
        PtxError: two orders differ in a bit.
    """
    first, kept = compute(**orders[0])
    for options in orders[1:]:
        again, _ = compute(**options)
        for i, (a, b) in enumerate(zip(first, again, strict=True)):
            if a is not None and b is not None and not same_bits(a, b):
                raise PtxError(f"result {i} differs with {options}")
    return kept


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit."""
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
