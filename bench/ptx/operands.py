"""Registers and operands: how an instruction's values are read and written.

A register holds a numpy array that broadcasts to [warps, 32], one number a lane: [1, 1] where all
have the same. Its dtype is that of whoever wrote it last; it is read as what the opcode says.
"""

from collections.abc import Callable

import numpy as np

from bench.ptx.chunk import SPECIAL, Chunk, Mask, constant
from bench.ptx.errors import PtxError
from bench.ptx.floats import F32, Array, canonical
from bench.ptx.program import Group, Immediate, Operand, Register, Special, Symbol
from bench.ptx.types import TYPES

Read = Callable[[Chunk], Array]
Write = Callable[[Chunk, Mask, Array], None]
Step = Callable[[Chunk, Mask], None]
SINK = Symbol("_")  # a destination that is dropped (section 6.2)
SHARED = "global_smem"  # the only variable, at address 0 of shared memory


def reader(operand: Operand, type_name: str, *, wider: bool = False) -> Read:
    """How to read an operand as a type, of a wider register the low bits if that is allowed.

    Raises:
        PtxError: the operand is of another kind or too narrow.
    """
    dtype = TYPES[type_name]
    if isinstance(operand, Immediate):
        made = np.full((1, 1), bool(operand.value)) if type_name == "pred" else None
        if made is None and operand.bits not in (None, 8 * dtype.itemsize):
            raise PtxError(f"a constant of {operand.bits} bits as .{type_name}")
        fixed = constant(operand.value, dtype) if made is None else made
        return lambda chunk: fixed
    if isinstance(operand, Special):
        name = operand.name
        if name not in SPECIAL:
            raise PtxError(f"unknown special register {name}")
        return lambda chunk: chunk.special[name].astype(dtype)
    if isinstance(operand, Symbol) and operand.name == SHARED:
        zero = constant(0, dtype)
        return lambda chunk: zero
    if not isinstance(operand, Register):
        raise PtxError(f"unknown operand {operand}")
    i, bits = operand
    size = 1 if type_name == "pred" else 8 * dtype.itemsize
    if bits < size or (bits == 1) != (size == 1) or (bits > size and not wider):
        raise PtxError(f"a register of {bits} bits as .{type_name}")
    if bits == size:

        def read(chunk: Chunk) -> Array:
            value = chunk.registers[i]
            if value.dtype is dtype:
                return value
            return (canonical(value) if value.dtype is F32 else value).view(dtype)

        return read
    whole, part = np.dtype(f"u{bits // 8}"), np.dtype(f"u{size // 8}")
    return lambda chunk: chunk.registers[i].view(whole).astype(part).view(dtype)


def writer(operand: Operand, type_name: str, *, wider: bool = False) -> Write:
    """How to write a type into a register; a wider one is extended if allowed (section 9.4.1)."""
    if operand == SINK:
        return lambda chunk, mask, value: None
    if not isinstance(operand, Register):
        raise PtxError(f"the destination {operand} is no register")
    i, bits = operand
    dtype = TYPES[type_name]
    size = 1 if type_name == "pred" else 8 * dtype.itemsize
    if bits < size or (bits == 1) != (size == 1) or (bits > size and not wider):
        raise PtxError(f"a destination of {bits} bits for .{type_name}")
    wide = np.dtype(f"{dtype.kind if dtype.kind in 'iu' else 'u'}{bits // 8}") if bits > 1 else None
    raw = np.dtype(f"u{dtype.itemsize}") if dtype.kind == "f" else dtype

    def write(chunk: Chunk, mask: Mask, value: Array) -> None:
        if bits > size:
            value = value.view(raw).astype(wide)
        if mask is not None:
            value = np.where(mask, value, chunk.registers[i].view(value.dtype))
        chunk.registers[i] = value

    return write


def items(operand: Operand) -> tuple[Operand, ...]:
    """The operands of a group, or the one."""
    return operand.items if isinstance(operand, Group) else (operand,)


def move(operands: tuple[Operand, ...], type_name: str) -> Step:
    """mov: a copy, or a register split into parts or put together, the lowest first (9.7.9.1)."""
    to, source = operands
    if isinstance(to, Group):
        read, bits = reader(source, type_name), 8 * TYPES[type_name].itemsize // len(to.items)
        writes = [writer(item, f"b{bits}") for item in to.items]
        part = TYPES[f"b{bits}"]

        def split(chunk: Chunk, mask: Mask) -> None:
            value = read(chunk)
            for i, write in enumerate(writes):
                write(chunk, mask, (value >> value.dtype.type(i * bits)).astype(part))

        return split
    put = writer(to, type_name)
    if isinstance(source, Group):
        bits = 8 * TYPES[type_name].itemsize // len(source.items)
        reads = [reader(item, f"b{bits}") for item in source.items]
        whole = TYPES[type_name]

        def join(chunk: Chunk, mask: Mask) -> None:
            value = reads[0](chunk).astype(whole)
            for i, each in enumerate(reads[1:], 1):
                value = value | (each(chunk).astype(whole) << whole.type(i * bits))
            put(chunk, mask, value)

        return join
    copy = reader(source, type_name)
    return lambda chunk, mask: put(chunk, mask, copy(chunk))
