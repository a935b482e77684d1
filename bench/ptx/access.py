"""Loads, stores, atomics and fences (sections 9.7.9.8, 9.7.9.11, 9.7.13.4 and 9.7.13.6)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bench.ptx.chunk import Chunk, Mask, constant
from bench.ptx.errors import PtxError
from bench.ptx.faults import Fault
from bench.ptx.memory import with_history
from bench.ptx.operands import Step, items, reader, writer
from bench.ptx.program import Address, Instruction, Program, Symbol
from bench.ptx.races import ATOMIC, THREAD_BITS, Now
from bench.ptx.types import TYPES
from bench.ptx.warps import address_reader

SPACES = {"param": "param", "global": "global", "shared": "shared", "shared::cta": "shared"}
VECTORS = {"v2": 2, "v4": 4}
HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak")  # change no number
STRONG = ("relaxed", "acquire", "release", "volatile")  # a weak access is none of these
SCOPES = ("gpu", "sys")


class Shape(NamedTuple):
    """What an access moves a lane, and how."""

    space: str
    type_name: str
    numbers: int
    strength: str  # one of STRONG, or "" if weak

    @property
    def size(self) -> int:
        """Bytes a lane."""
        return TYPES[self.type_name].itemsize * self.numbers


def shape_of(instruction: Instruction) -> Shape:
    """The shape of a ld or st.

    Raises:
        PtxError: naming an opcode with an unknown modifier.
    """
    _, *modifiers, type_name = instruction.parts
    space = strength = ""
    count = 1
    scoped = False
    for m in modifiers:
        if m in SPACES and not space:
            space = SPACES[m]
        elif m in VECTORS:
            count = VECTORS[m]
        elif m in STRONG:
            strength = m
        elif m in SCOPES:
            scoped = True
        elif m not in HINTS and not m.startswith(("L1::evict", "L1::no_allocate", "L2::evict")):
            raise PtxError(f"unknown opcode {instruction.opcode}")
    volatile = strength in ("", "volatile")
    if not space or type_name not in TYPES or type_name == "pred" or scoped == volatile:
        raise PtxError(f"unknown opcode {instruction.opcode}")
    return Shape(space, type_name, count, strength)


def load(instruction: Instruction, program: Program) -> Step:
    """ld, of parameters, global or shared memory."""
    shape = shape_of(instruction)
    to, address = instruction.operands
    writes = [writer(o, shape.type_name, wider=True) for o in items(to)]
    if not isinstance(address, Address) or len(writes) != shape.numbers:
        raise PtxError(f"unknown operands of {instruction.opcode}")
    dtype = TYPES[shape.type_name]
    if shape.space == "param":
        return load_parameter(address, program, dtype, writes[0])
    at = address_reader(address, "u32" if shape.space == "shared" else "b64")
    strong = ATOMIC if shape.strength else 0

    def step(chunk: Chunk, mask: Mask) -> None:
        addresses = chunk.lanes(at(chunk), mask)
        now = chunk.now(mask, strong)
        if shape.space == "shared":
            local = chunk.lanes(chunk.local, mask)
            found = chunk.shared.load(local, addresses, dtype, shape.numbers, now)
        else:
            found = chunk.memory.load(addresses, dtype, shape.numbers, now)
            if strong:
                for program, thread, a in each(now, addresses):
                    acquire = shape.strength == "acquire"
                    chunk.clocks.strong_read(program, thread, a, acquire)
        chunk.count(addresses, mask)
        for i, write in enumerate(writes):
            write(chunk, mask, chunk.spread(found[:, i], mask))

    return step


def load_parameter(address: Address, program: Program, dtype: np.dtype, write: Callable) -> Step:
    """ld.param: the value itself, or its low bits."""
    names = [p.name for p in program.parameters]
    if not isinstance(address.base, Symbol) or address.base.name not in names or address.offset:
        raise PtxError(f"unknown parameter {address}")
    number = names.index(address.base.name)

    def step(chunk: Chunk, mask: Mask) -> None:
        write(chunk, mask, constant(chunk.parameters[number], dtype))

    return step


def store(instruction: Instruction) -> Step:
    """st, to global or shared memory."""
    shape = shape_of(instruction)
    address, source = instruction.operands
    reads = [reader(o, shape.type_name, wider=True) for o in items(source)]
    if not isinstance(address, Address) or len(reads) != shape.numbers or shape.space == "param":
        raise PtxError(f"unknown operands of {instruction.opcode}")
    at = address_reader(address, "u32" if shape.space == "shared" else "b64")
    strong = ATOMIC if shape.strength else 0

    def step(chunk: Chunk, mask: Mask) -> None:
        addresses = chunk.lanes(at(chunk), mask)
        values = np.stack([chunk.lanes(read(chunk), mask) for read in reads], 1)
        now = chunk.now(mask, strong)
        if shape.space == "shared":
            chunk.shared.store(chunk.lanes(chunk.local, mask), addresses, values, now)
        else:
            chunk.memory.store(addresses, values, now)
            if strong:
                release = shape.strength == "release"
                for program, thread, a in each(now, addresses):
                    chunk.clocks.strong_write(program, thread, a, release, update=False)
                chunk.changed()
        chunk.count(addresses, mask)

    return step


def each(now: Now, addresses: np.ndarray) -> list[tuple[int, int, int]]:
    """Program, thread and address of each access."""
    threads = now.stamps & THREAD_BITS
    return list(zip(now.programs.tolist(), threads.tolist(), addresses.tolist(), strict=True))


UPDATE: dict[str, Callable] = {
    "add": lambda old, b: old + b,
    "exch": lambda old, b: b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, b: old.dtype.type(0) if old >= b else old + old.dtype.type(1),
    "dec": lambda old, b: b if old == 0 or old > b else old - old.dtype.type(1),
}
SEMANTICS = ("relaxed", "acquire", "release", "acq_rel")


def update(instruction: Instruction, float_atomics: bool) -> Step:
    """atom and red on global memory, one lane after the other."""
    kind, *modifiers, type_name = instruction.parts
    semantics = [m for m in modifiers if m in SEMANTICS] or ["relaxed"]
    names = [m for m in modifiers if m in UPDATE or m == "cas"]
    rest = [m for m in modifiers if m not in (*semantics, *names, *SCOPES, "global")]
    if rest or len(names) != 1 or type_name not in TYPES or "global" not in modifiers:
        raise PtxError(f"unknown opcode {instruction.opcode}")
    (name,) = names
    dtype = TYPES[type_name]
    if dtype.kind == "f" and name == "add" and not float_atomics:
        raise PtxError("the sum depends on the order of the programs")
    operands = list(instruction.operands)
    put = writer(operands.pop(0), type_name) if kind == "atom" else None
    at = address_reader(operands[0], "b64")
    reads = [reader(o, type_name) for o in operands[1:]]
    acquires, releases = (semantics[0] in (s, "acq_rel") for s in ("acquire", "release"))

    def step(chunk: Chunk, mask: Mask) -> None:
        addresses = chunk.lanes(at(chunk), mask)
        values = [chunk.lanes(read(chunk), mask) for read in reads]
        now = chunk.now(mask, ATOMIC)
        before = np.empty(len(addresses), dtype)
        for i, (program, thread, a) in enumerate(each(now, addresses)):
            before[i] = one(chunk, i, a, [v[i] for v in values], now)
            chunk.clocks.strong_read(program, thread, a, acquires)
            chunk.clocks.strong_write(program, thread, a, releases, update=True)
        chunk.changed()
        chunk.count(addresses, mask)
        if put is not None:
            put(chunk, mask, chunk.spread(before, mask))

    def one(chunk: Chunk, i: int, a: int, given: list, now: Now) -> np.generic:
        """Update a word; returns what it held."""
        try:
            region, words, place = chunk.memory.word(a, dtype)
            cells = region.find(np.array([a]), dtype.itemsize)
            chunk.memory.check_writable(region, slice(None), cells, len(cells))
            if region.undefined[cells].any():
                raise Fault(0, f"nothing has written {region.describe(int(cells[0]))}")
            mine = Now(now.stamps[i : i + 1], now.programs[i : i + 1])
            enter = region.history.write
            with_history(region, slice(None), cells, len(cells), "updated", enter, mine)
            region.touch("st", cells[:1])
        except Fault as fault:
            raise Fault(i, str(fault)) from None
        old = words[place]
        if name != "cas":
            words[place] = UPDATE[name](old, given[0])
        elif old == given[0]:
            words[place] = given[1]
        return old

    return step


FENCES = {"membar.gl", "membar.sys", "membar.cta"} | {
    f"fence.{how}.{scope}" for how in ("acq_rel", "sc") for scope in ("cta", "gpu", "sys")
}


def fence(instruction: Instruction) -> Step:
    """membar and fence; of .cta scope they order nothing between programs."""
    narrow = instruction.opcode.endswith(".cta")

    def step(chunk: Chunk, mask: Mask) -> None:
        if narrow:
            return
        now = chunk.now(mask)
        for program, thread, _ in each(now, now.stamps):
            chunk.clocks.fence(program, thread)
        for program in np.unique(now.programs).tolist():
            chunk.clocks.advance(program)
        chunk.changed()

    return step
