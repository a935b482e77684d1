"""Instructions in which the lanes of a warp exchange data (sections 9.7.9.6 and 9.7.13).

None of them orders memory accesses but bar.warp.sync, which is in machine.py.
"""

from collections.abc import Callable

import numpy as np

from bench.ptx.chunk import Chunk, Mask
from bench.ptx.errors import PtxError
from bench.ptx.faults import Fault
from bench.ptx.floats import Array, larger, smaller
from bench.ptx.operands import Read, Step, items, reader, writer
from bench.ptx.program import Instruction
from bench.ptx.types import TYPES

LANES = np.arange(32)


def check_members(chunk: Chunk, mask: Mask, members: Array) -> None:
    """Raise Fault unless exactly the lanes named in the member mask execute the instruction."""
    if mask is None and (members == 0xFFFFFFFF).all():
        return
    lanes = chunk.everyone if mask is None else mask
    present = (lanes.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, dtype=np.uint32)
    wrong = lanes & (present[:, None] != members)
    if wrong.any():
        at = np.flatnonzero(wrong[lanes])[0]
        raise Fault(int(at), "the lanes that execute it are not those of its member mask")


def shuffle(instruction: Instruction) -> Step:
    """shfl.sync.MODE.b32 d[|p], a, b, c, members (section 9.7.9.6)."""
    mode = instruction.parts[2]
    if instruction.parts[1:] != ("sync", mode, "b32") or mode not in ("idx", "up", "down", "bfly"):
        raise PtxError(f"unknown opcode {instruction.opcode}")
    to, *sources = instruction.operands
    writes = [writer(o, t) for o, t in zip(items(to), ("b32", "pred"), strict=False)]
    value, offset, clamp, members = (reader(o, "b32") for o in sources)

    def step(chunk: Chunk, mask: Mask) -> None:
        check_members(chunk, mask, members(chunk))
        chosen, inside = source_lanes(mode, offset(chunk), clamp(chunk))
        chosen = np.broadcast_to(chosen, chunk.shape)
        if mask is not None and not np.take_along_axis(mask, chosen, 1)[mask].all():
            at = np.flatnonzero(~np.take_along_axis(mask, chosen, 1)[mask])[0]
            raise Fault(int(at), "reads a lane that does not execute the shuffle")
        spread = np.broadcast_to(value(chunk), chunk.shape)
        writes[0](chunk, mask, np.take_along_axis(spread, chosen, 1))
        if len(writes) == 2:
            writes[1](chunk, mask, inside)

    return step


def source_lanes(mode: str, offset: Array, clamp: Array) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether that is the one asked for."""
    b, c = (offset & 31).astype(np.int64), clamp.astype(np.int64)
    segment = (c >> 8) & 31
    highest = (LANES & segment) | (c & 31 & ~segment)
    if mode == "up":
        wanted, inside = LANES - b, LANES - b >= highest
    elif mode == "down":
        wanted, inside = LANES + b, LANES + b <= highest
    elif mode == "bfly":
        wanted, inside = LANES ^ b, (LANES ^ b) <= highest
    else:
        wanted = (LANES & segment) | (b & ~segment)
        inside = wanted <= highest
    return np.where(inside, wanted, LANES), inside


REDUCE: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
NEUTRAL = {"add": 0, "or": 0, "xor": 0, "and": -1}


def reduction(instruction: Instruction) -> Step:
    """redux.sync.OP.TYPE: a number from all lanes to all lanes (section 9.7.13.9)."""
    name, type_name = instruction.parts[2], instruction.parts[-1]
    dtype = TYPES.get(type_name)
    real = type_name == "f32"
    functions = {"min": smaller, "max": larger} if real else REDUCE
    if len(instruction.parts) != 4 or name not in functions or dtype is None:
        raise PtxError(f"unknown opcode {instruction.opcode}")
    function = functions[name]
    to, source, who = instruction.operands
    write, read, members = writer(to, type_name), reader(source, type_name), reader(who, "b32")

    def step(chunk: Chunk, mask: Mask) -> None:
        check_members(chunk, mask, members(chunk))
        values = np.broadcast_to(read(chunk), chunk.shape)
        if mask is not None:
            # A lane that is not there holds what changes nothing: its warp's first member's number.
            first = np.take_along_axis(values, mask.argmax(1)[:, None], 1)
            rest = first if name not in NEUTRAL else dtype.type(0) - dtype.type(-NEUTRAL[name])
            values = np.where(mask, values, rest)
        while values.shape[1] > 1:
            half = values.shape[1] // 2
            values = function(values[:, :half], values[:, half:])
        write(chunk, mask, np.ascontiguousarray(values))

    return step


def vote(instruction: Instruction) -> Step:
    """vote.sync.all, .any, .uni or .ballot (section 9.7.13.5)."""
    how = instruction.parts[2:]
    if how not in (("all", "pred"), ("any", "pred"), ("uni", "pred"), ("ballot", "b32")):
        raise PtxError(f"unknown opcode {instruction.opcode}")
    to, source, who = instruction.operands
    write, read, members = writer(to, how[1]), reader(source, "pred"), reader(who, "b32")

    def step(chunk: Chunk, mask: Mask) -> None:
        check_members(chunk, mask, members(chunk))
        lanes = chunk.everyone if mask is None else mask
        yes = np.broadcast_to(read(chunk), chunk.shape)
        any_, all_ = (yes & lanes).any(1), (yes | ~lanes).all(1)
        if how[0] == "ballot":
            bits = (yes & lanes).astype(np.uint32) << LANES.astype(np.uint32)
            made = bits.sum(1, dtype=np.uint32)
        else:
            made = {"all": all_, "any": any_, "uni": all_ | ~any_}[how[0]]
        write(chunk, mask, made[:, None])

    return step


def matrix(instruction: Instruction) -> Step:
    """ldmatrix and stmatrix .m8n8.b16 (sections 9.7.14.5.15 and 9.7.14.5.16).

    Lane 8 j + i has the address of row i, of 16 bytes, of matrix j; lane l holds the numbers
    2 (l mod 4) and the next of row l // 4 or, with .trans, of that column.
    """
    kind, *modifiers = instruction.parts
    if "trans" in modifiers:
        transposed = True
        modifiers.remove("trans")
    else:
        transposed = False
    known = [["sync", "aligned", "m8n8", f"x{n}", space, "b16"]
             for n in (1, 2, 4) for space in ("shared", "shared::cta")]  # fmt: skip
    if modifiers not in known:
        raise PtxError(f"unknown opcode {instruction.opcode}")
    count = int(modifiers[3][1])
    loads = kind == "ldmatrix"
    registers, address = instruction.operands if loads else instruction.operands[::-1]
    at = address_reader(address, "u32")
    each = items(registers)
    if len(each) != count:
        raise PtxError(f"{kind} of {count} matrices with {len(each)} registers")
    writes: list[Callable] = [writer(o, "b32") for o in each] if loads else []
    reads: list[Read] = [] if loads else [reader(o, "b32") for o in each]
    row, column = LANES // 4, 2 * (LANES % 4)

    def places(rows: Array, j: int) -> tuple[Array, Array]:
        """The addresses of the two halves that each lane holds of matrix j."""
        if transposed:
            return (rows[:, 8 * j + column] + 2 * row, rows[:, 8 * j + column + 1] + 2 * row)
        return rows[:, 8 * j + row] + 2 * column, rows[:, 8 * j + row] + 2 * column + 2

    def step(chunk: Chunk, mask: Mask) -> None:
        whole = None if mask is None else mask.any(1)
        if mask is not None and (mask != whole[:, None]).any():  # type: ignore[index]
            raise Fault(0, "not all lanes of a warp execute it")
        rows = np.broadcast_to(at(chunk), chunk.shape)
        there = rows if whole is None else rows[whole]
        if (there[:, : 8 * count] % 16).any():
            raise Fault(0, "a row's address is not aligned to 16 bytes")
        chunk.count(chunk.lanes(rows, mask), mask)
        program, now = chunk.lanes(chunk.local, mask), chunk.now(mask)
        for j in range(count):
            halves = [chunk.lanes(p, mask) for p in places(rows, j)]
            if loads:
                low, high = (
                    chunk.shared.load(program, p, np.dtype("u2"), 1, now)[:, 0].astype(np.uint32)
                    for p in halves
                )
                value = low | (high << np.uint32(16))
                writes[j](chunk, mask, chunk.spread(value, mask))
            else:
                value = chunk.lanes(np.broadcast_to(reads[j](chunk), chunk.shape), mask)
                for p, shift in zip(halves, (0, 16), strict=True):
                    half = (value >> np.uint32(shift)).astype(np.uint16)
                    chunk.shared.store(program, p, half[:, None], now)

    return step


def address_reader(operand, type_name: str) -> Read:  # type: ignore[no-untyped-def]
    """Addresses as int64 of an operand [base + offset]."""
    base, offset = reader(operand.base, type_name, wider=True), operand.offset
    return lambda chunk: base(chunk).astype(np.int64) + offset
