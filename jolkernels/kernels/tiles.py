"""How a program goes through a batch: tiles of rows, and blocks of columns within a tile.

The programs of a launch, a warp each, take tiles in turn. A tile is of one KIND:

narrow: ROWS rows; a block is [ROWS, BLOCK] of their numbers, and all blocks are in registers;
wide: one row; a block is BLOCK numbers of it as [BLOCK / LANE, LANE]. Blocks begin where 16 bytes
do in a contiguous tensor, up to LANE - 1 numbers before the row;
planes: as narrow, of rows that are neighbours in each column's plane, as in feature maps [C, H, W];
long planes: PART columns are in registers, and read while the PART before are computed.

A SHAPE is (COLUMNS, BLOCK, KIND, ROWS, VECTOR), the last two for planes alone. Offsets of logits
within a tile are 32-bit where tensors are contiguous (DENSE), others 64-bit.
"""

import triton
import triton.language as tl

LANE = tl.constexpr(8)
PART = tl.constexpr(16)
"""Columns: a multiple of all blocks in planes."""


@triton.jit
def number_of_tiles(n, ROWS: tl.constexpr):
    return tl.cdiv(n.to(tl.int64), ROWS).to(tl.int32)  # n + ROWS may not fit in 32 bits


@triton.jit
def tile_rows(tile, n, ROWS: tl.constexpr, DENSE: tl.constexpr):
    """The first row of a tile, its rows counted from there and from 0, and which the batch has.

    Rows beyond the end are the last one once more, so that all can be read.
    """
    first = tl.full([], tile, tl.int64) * ROWS
    rows = tl.arange(0, ROWS)
    inside = rows >= 0
    if ROWS > 1:
        left = tl.minimum(n - first, ROWS).to(tl.int32)
        inside = rows < left
        rows = tl.minimum(rows, left - 1)
    samples = first + rows
    if not DENSE:
        rows = rows.to(tl.int64)
    return first, rows, samples, inside


@triton.jit
def first_block(first, COLUMNS: tl.constexpr, KIND: tl.constexpr):
    """The column at which a tile's first block begins: 0 or, in a wide tile, a little less."""
    begin = 0
    if KIND == "wide":
        begin = -((first * COLUMNS) % LANE).to(tl.int32)
    return begin


@triton.jit
def to_block(
    pointer, first, begin, stride_row, stride_col,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """A pointer to where a tile's first block begins."""
    if KIND == "wide" and DENSE:
        pointer += (first * COLUMNS) // LANE * LANE  # a multiple of LANE, as the compiler sees
    else:
        pointer += first * stride_row + begin * stride_col
    return pointer


@triton.jit
def in_block(start, SHAPE: tl.constexpr):
    """Where a block's numbers lie in their rows, counted from the tile's first block."""
    BLOCK: tl.constexpr = SHAPE[1]
    if SHAPE[2] == "wide":
        at = (tl.arange(0, BLOCK // LANE) * LANE)[:, None] + tl.arange(0, LANE)[None, :]
    else:
        at = tl.arange(0, BLOCK)[None, :]
    return start + at


@triton.jit
def in_planes(table, at, VECTOR: tl.constexpr, ROWS: tl.constexpr):
    """Where the columns `at` of a tile in planes lie, and which of its rows the level has.

    table: a pointer to the level, the tile's offset there, the rows from there on, the stride of
    columns: multiples of VECTOR each, as the compiler then sees.
    """
    rows = tl.arange(0, ROWS)[:, None]
    offset = table[1] // VECTOR * VECTOR
    left, stride = table[2] // VECTOR * VECTOR, table[3] // VECTOR * VECTOR
    return table[0] + offset + (rows + at * stride), rows < left


@triton.jit
def load_in_planes(table, at, HANGS_OVER: tl.constexpr, VECTOR: tl.constexpr, SHAPE: tl.constexpr):
    """A block in planes; what its rows hold beyond the level is anything."""
    COLUMNS: tl.constexpr = SHAPE[0]
    p, inside = in_planes(table, at, VECTOR, SHAPE[3])
    if HANGS_OVER:
        z = tl.load(p, mask=inside & (at < COLUMNS), other=-float("inf"))
    else:
        z = tl.load(p, mask=inside)
    return z


@triton.jit
def load_block(table, start, begin, HANGS_OVER: tl.constexpr, SHAPE: tl.constexpr):
    """A block of numbers of a tile; beyond the rows' ends -inf.

    table: pointers [ROWS, 1] to the tile's first block, and the stride of columns; of planes what
    in_planes takes, and whether VECTOR rows can be read at once.
    """
    COLUMNS: tl.constexpr = SHAPE[0]
    at = in_block(start, SHAPE)
    if SHAPE[2] == "planes" or SHAPE[2] == "long planes":
        if table[4]:
            z = load_in_planes(table, at, HANGS_OVER, SHAPE[4], SHAPE)
        else:
            z = load_in_planes(table, at, HANGS_OVER, 1, SHAPE)
    elif HANGS_OVER:
        cols = begin + at
        inside = (cols >= 0) & (cols < COLUMNS)
        z = tl.load(table[0] + at * table[1], mask=inside, other=-float("inf"))
    else:
        z = tl.load(table[0] + at * table[1])
    return z


@triton.jit
def blocks_of_planes(
    table, start, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, SHAPE: tl.constexpr
):
    """The blocks of COLUMNS columns from `start` on of a tile in planes, VECTOR rows at once."""
    BLOCK: tl.constexpr = SHAPE[1]
    blocks = ()
    for i in tl.static_range(0, COLUMNS, BLOCK):
        at = in_block(start + i, SHAPE)
        blocks = blocks + (load_in_planes(table, at, i + BLOCK > COLUMNS, VECTOR, SHAPE),)
    return blocks


@triton.jit
def load_planes(table, start, COLUMNS: tl.constexpr, SHAPE: tl.constexpr):
    """The blocks of COLUMNS columns from `start` on of a tile in planes."""
    if table[4]:
        blocks = blocks_of_planes(table, start, COLUMNS, SHAPE[4], SHAPE)
    else:
        blocks = blocks_of_planes(table, start, COLUMNS, 1, SHAPE)
    return blocks


@triton.jit
def load_first(table, begin, SHAPE: tl.constexpr):
    """The blocks that a tile reads at once, as a tuple: no load waits for the numbers of another.

    All of a narrow tile or one in planes, the first part in long planes, none of a wide one.
    """
    COLUMNS: tl.constexpr = SHAPE[0]
    BLOCK: tl.constexpr = SHAPE[1]
    blocks = ()
    if SHAPE[2] == "narrow":
        for start in tl.static_range(0, COLUMNS, BLOCK):
            blocks = blocks + (load_block(table, start, begin, start + BLOCK > COLUMNS, SHAPE),)
    elif SHAPE[2] == "planes":
        blocks = load_planes(table, 0, COLUMNS, SHAPE)
    elif SHAPE[2] == "long planes":
        blocks = load_planes(table, 0, PART, SHAPE)
    return blocks


@triton.jit
def over_blocks(
    STEP: tl.constexpr, state, blocks, table, begin, given, CHOICES: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """state = STEP(state, z, start, begin, given, HANGS_OVER, CHOICES, SHAPE) for each block z.

    HANGS_OVER: some of the block's columns are not within the row. A STEP ignores what it does not
    need.
    """
    COLUMNS: tl.constexpr = SHAPE[0]
    BLOCK: tl.constexpr = SHAPE[1]
    if SHAPE[2] == "wide":
        whole = tl.maximum(COLUMNS - begin - BLOCK, 0) // BLOCK
        z = load_block(table, 0, begin, True, SHAPE)
        state = STEP(state, z, 0, begin, given, True, CHOICES, SHAPE)
        for i in range(1, 1 + whole):
            z = load_block(table, i * BLOCK, begin, False, SHAPE)
            state = STEP(state, z, i * BLOCK, begin, given, False, CHOICES, SHAPE)
        z = load_block(table, (1 + whole) * BLOCK, begin, True, SHAPE)
        state = STEP(state, z, (1 + whole) * BLOCK, begin, given, True, CHOICES, SHAPE)
    elif SHAPE[2] == "long planes":
        END: tl.constexpr = COLUMNS // PART * PART
        rest = ()
        if END < COLUMNS:
            rest = load_planes(table, END, COLUMNS - END, SHAPE)
        for start in range(0, END, PART):  # not unrolled: code must fit into a cache, too
            ahead = blocks
            if start + PART < END:
                ahead = load_planes(table, start + PART, PART, SHAPE)
            for i in tl.static_range(len(blocks)):
                state = STEP(
                    state, blocks[i], start + i * BLOCK, begin, given, False, CHOICES, SHAPE
                )
            blocks = ahead
        for i in tl.static_range(len(rest)):
            state = STEP(
                state, rest[i], END + i * BLOCK, begin, given, END + (i + 1) * BLOCK > COLUMNS,
                CHOICES, SHAPE,
            )  # fmt: skip
    else:
        for i in tl.static_range(len(blocks)):
            state = STEP(
                state, blocks[i], i * BLOCK, begin, given, (i + 1) * BLOCK > COLUMNS, CHOICES, SHAPE
            )
    return state


@triton.jit
def over_columns(numbers, KIND: tl.constexpr):
    """The sums [ROWS] of a block's rows."""
    sums = tl.sum(numbers, 1)
    if KIND == "wide":
        sums = tl.sum(sums, 0, keep_dims=True)
    return sums
