"""Where the samples of a dense head lie, and what is known of them.

A program has tiles of one image. These go over its levels one after the other: in planes over the
blocks of ROWS positions and, within one, over the anchors; else over the level's rows, (position,
anchor) each.

`maps` are the pointers to the levels' tensors. `levels` has for each level its `sizes` and, where
levels are not DENSE, eight strides: of images, columns and positions of its logits, the same of its
boxes, and of columns and positions of the boxes' gradient, which has no gaps. Triton makes a kernel
of its own for an integer in a tuple that is 1, a multiple of 16 or beyond 32 bits; as packed here
none is the first two, and all are the third.
"""

import triton
import triton.language as tl

from jolkernels.kernels.tiles import first_block, to_block

PACKED = tl.constexpr(2**62 + 1)
MOST_ANCHORS = 2**20
"""Of a position, as packed sizes have them: fewer than these."""


def packed_sizes(positions: int, anchors: int, whole: bool) -> int:
    """The sizes of a level; whole: a tile of it in planes can be read 16 bytes at a time."""
    return PACKED.value + (positions << 31) + (anchors << 11) + (whole << 1)


def packed_stride(stride: int) -> int:
    """A stride of a level."""
    return PACKED.value + (stride << 1)


@triton.jit
def sizes(level):
    """Positions, anchors and `whole` of a level, 32 bits each."""
    packed = level[0] - PACKED
    positions, anchors = (packed >> 31).to(tl.int32), ((packed >> 11) & (2**20 - 1)).to(tl.int32)
    return positions, anchors, ((packed >> 1) & 1).to(tl.int32)


@triton.jit
def numbers_of(level):
    """The sizes of a level and its strides, 64 bits each."""
    found = sizes(level)
    for i in tl.static_range(1, len(level)):
        found = found + ((level[i] - PACKED) >> 1,)
    return found


@triton.jit
def tiles_on(level, ROWS: tl.constexpr, PLANES: tl.constexpr):
    """How many tiles a level of an image has, and how many samples."""
    positions, anchors, _whole = sizes(level)
    if PLANES:
        tiles = ((positions + (ROWS - 1)) // ROWS) * anchors
    else:
        tiles = (positions * anchors + (ROWS - 1)) // ROWS
    return tiles, positions * anchors


@triton.jit
def tiles_of_image(levels, ROWS: tl.constexpr, PLANES: tl.constexpr):
    """How many tiles an image has."""
    tiles = tl.full([], 0, tl.int32)
    for i in tl.static_range(len(levels)):
        more, _samples = tiles_on(levels[i], ROWS, PLANES)
        tiles += more
    return tiles


@triton.jit
def pointers(maps, LEVEL: tl.constexpr):
    """The pointers to a level's tensors."""
    found = ()
    for i in tl.static_range(len(maps)):
        found = found + (maps[i][LEVEL],)
    return found


@triton.jit
def level_of(tile, maps, levels, ROWS: tl.constexpr, PLANES: tl.constexpr):
    """The level that a tile is on: its pointers, its numbers, its first tile and sample."""
    begin, first = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    at, numbers = pointers(maps, 0), numbers_of(levels[0])
    end, samples = tiles_on(levels[0], ROWS, PLANES)
    for i in tl.static_range(1, len(levels)):
        if tile >= end:
            begin, first = end, samples
            at, numbers = pointers(maps, i), numbers_of(levels[i])
        tiles, more = tiles_on(levels[i], ROWS, PLANES)
        end += tiles
        samples += more
    return at, numbers, begin, first


@triton.jit
def in_planes_of(tile, at, numbers, image, SHAPE: tl.constexpr, DENSE: tl.constexpr):
    """place_of a tile in planes: of one anchor."""
    COLUMNS: tl.constexpr = SHAPE[0]
    positions, anchors, whole = numbers[0], numbers[1], numbers[2]
    ROWS: tl.constexpr = SHAPE[3]
    rows = tl.arange(0, ROWS)
    anchor, first = tile % anchors, tile // anchors * ROWS
    left = positions - first
    position = first + tl.minimum(rows, left - 1)
    if DENSE:
        stride, stride_box = positions, positions
        plane = (image * anchors + anchor) * positions
        offset, box = plane * COLUMNS + first, plane * 4 + position
    else:
        stride, stride_box = numbers[4], numbers[7]
        offset = image * numbers[3] + anchor * COLUMNS * stride + first
        box = image * numbers[6] + anchor * 4 * stride_box + position * numbers[8]
    z = at[0] + (offset - first) + position
    table = (at[0], offset, left, stride, whole)
    row, inside = position * anchors + anchor, rows < left
    return table, 0, (z, stride), (at[1] + box, stride_box), row, inside


@triton.jit
def in_rows_of(tile, at, numbers, image, SHAPE: tl.constexpr, DENSE: tl.constexpr):
    """place_of a tile of rows, of all anchors of some positions."""
    COLUMNS: tl.constexpr = SHAPE[0]
    KIND: tl.constexpr = SHAPE[2]
    ROWS: tl.constexpr = SHAPE[3]
    positions, anchors = numbers[0], numbers[1]
    rows = tl.arange(0, ROWS)
    first = tile * ROWS
    left = positions * anchors - first
    inside = rows < left
    rows = tl.minimum(rows, left - 1)
    row = first + rows
    start = image * positions * anchors + first
    begin = first_block(start, COLUMNS, KIND)  # by samples: of gradients, without gaps, the same
    if DENSE:
        stride, stride_box = 1, 1
        block = to_block(at[0], start, begin, COLUMNS, 1, COLUMNS, KIND, True)
        table = ((block + rows * COLUMNS)[:, None], 1)
        z, box = at[0] + (start + rows) * COLUMNS, at[1] + (start + rows) * 4
    else:
        stride, stride_box = numbers[4], numbers[7]
        position, anchor = row // anchors, row % anchors
        z = at[0] + (image * numbers[3] + position * numbers[5] + anchor * COLUMNS * stride)
        table = ((z + begin * stride)[:, None], stride)
        box = at[1] + (image * numbers[6] + position * numbers[8] + anchor * 4 * stride_box)
    return table, begin, (z, stride), (box, stride_box), row, inside


@triton.jit
def place_of(tile, at, numbers, image, SHAPE: tl.constexpr, DENSE: tl.constexpr):
    """Where the rows of a level's tile lie.

    Returns a table and the column where its first block begins, as load_block takes them; pointers
    to the rows' first logits and the stride of columns; the same of their boxes; the rows' numbers
    on the level and which of them are there. Those that are not are the last one once more, so that
    all can be read.
    """
    if SHAPE[2] == "planes" or SHAPE[2] == "long planes":
        place = in_planes_of(tile, at, numbers, image, SHAPE, DENSE)
    else:
        place = in_rows_of(tile, at, numbers, image, SHAPE, DENSE)
    return place


@triton.jit
def kinds_of(
    labels, matched, counts, samples, inside,
    BACKGROUND: tl.constexpr, LAST: tl.constexpr, OF_OBJECTS: tl.constexpr,
):  # fmt: skip
    """valid, positive, bad and label y of samples, as row_kinds, and the rows of their targets.

    matched: the object of each sample, -1 for the background and -2 for ignored ones; labels are
    the objects' if OF_OBJECTS. None: targets are the samples' own. counts: the image, objects of an
    image, the label to ignore.
    """
    image, objects, ignore = counts
    target, bad = samples, inside & (samples < 0)
    if matched is None:
        label = tl.load(labels + samples).to(tl.int64)
        counted = inside & (label != ignore)
    else:
        found = tl.load(matched + samples).to(tl.int64)
        there = inside & (found >= 0) & (found < objects)
        target = image * objects + tl.where(there, found, 0)
        if OF_OBJECTS:
            label = tl.load(labels + target, mask=there, other=0).to(tl.int64)
            label = tl.where(there, label, BACKGROUND)
            bad = inside & ((found < -2) | (found >= objects))
            counted = inside & (bad == 0) & (found != -2) & (label != ignore)
        else:
            label = tl.load(labels + samples).to(tl.int64)
            counted = inside & (label != ignore)
            bad = counted & (label != BACKGROUND) & (there == 0)
    bad |= counted & ((label < 0) | (label > LAST))
    valid = counted & (bad == 0)
    y = tl.where(valid, label, 0).to(tl.int32)
    return valid, valid & (label != BACKGROUND), bad, y, target
