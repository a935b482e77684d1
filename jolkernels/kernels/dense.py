"""The kernels of the dense entrance: those of rows, on levels of feature maps.

Programs are the images' in equal parts: of G programs and B images, number p has tiles p % (G / B),
and every G / B further, of image p // (G / B).

A tile in planes has several rows a lane, too many for what positives take. It is first done as if
all its rows were negative. Then those of its strips that have positives do these once more.
"""

import triton
import triton.language as tl

from jolkernels.kernels.backward import load_group, narrowed, tile_gradients
from jolkernels.kernels.finish import finish_if_last, finish_images_if_last, in_order
from jolkernels.kernels.forward import tile_numbers
from jolkernels.kernels.levels import kinds_of, level_of, place_of, tiles_of_image
from jolkernels.kernels.tiles import load_first

SIZES = ["stride_prior_image", "images", "n", "objects", "ignore"]
SELDOM_READ = [
    "labels", "matched", "alphas", "betas", "class_targets", "extras", "class_weights", "row_terms",
    "scalars", "z_cls", "z_loc",
]  # fmt: skip
STRIP = tl.constexpr(32)
"""Rows of a strip."""


@triton.jit
def no_sums(ROWS: tl.constexpr, OF_POSITIVES: tl.constexpr, SUMS: tl.constexpr, ACC: tl.constexpr):
    """Zeros: sums [ROWS], those of positives [OF_POSITIVES]."""
    sums = ()
    for i in tl.static_range(SUMS):
        if i == 0 or i == 1 or i == 6:
            sums = sums + (tl.zeros([ROWS], tl.int32),)
        elif i == 2 or i == 3 or i == 5 or i == 8:
            sums = sums + (tl.zeros([OF_POSITIVES], ACC),)
        else:
            sums = sums + (tl.zeros([ROWS], ACC),)
    return sums


@triton.jit
def add_those(sums, more, POSITIVES: tl.constexpr):
    """`more` added to the sums, of positives or the others; POSITIVES None: to all."""
    total = ()
    for i in tl.static_range(len(sums)):
        if POSITIVES is None or (i == 2 or i == 3 or i == 5 or i == 8) == POSITIVES:
            total = total + (sums[i] + more[i],)
        else:
            total = total + (sums[i],)
    return total


@triton.jit
def boxes_of(tensors, place, kinds, first):
    """Where boxes, targets and priors of a tile's rows are, as tile_numbers takes them."""
    _labels, _matched, targets, priors = tensors
    of_priors = (None, 1)
    if priors is not None:
        of_priors = (priors + (first + place[4]) * 4, 1)
    return place[3], (targets + kinds[4] * 4, 1), of_priors


@triton.jit
def dense_numbers(
    place, kinds, first, tensors, factors, row_terms, image, images, n, CLASS: tl.constexpr,
    BOX: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, SHAPE: tl.constexpr,
    TOGETHER: tl.constexpr, ACC: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """tile_numbers of a tile at its place; with SOME of its positives alone."""
    table, begin, z, _box, row, inside = place
    valid, positive, bad, y, _target = kinds
    if SOME is True:
        valid, inside = positive, positive
    boxes, targets, priors = boxes_of(tensors, place, kinds, first)
    return tile_numbers(
        (table, load_first(table, begin, SHAPE), begin, z[0] + y * z[1]),
        (image * n + first + row, inside, valid, positive, bad, y),
        boxes, targets, priors, factors, row_terms, images * n, CLASS, BOX, WEIGHT, SUMS, SHAPE,
        TOGETHER, ACC, SOME,
    )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES, "ranks"],
            do_not_specialize_on_alignment=SELDOM_READ)  # fmt: skip
def dense_rows_kernel(
    logits, boxes, levels,
    labels, matched, targets, priors, stride_prior_image,
    alphas, betas, class_targets, extras, class_weights,
    row_terms, partial_sums, team_sums, image_sums, counters,
    classification, regression, negative_weight, num_positives, extra_regression, scalars,
    z_cls, z_loc, z_cls_number: tl.float64, z_loc_number: tl.float64, ranks,
    images, n: tl.int64, objects, ignore,
    COLUMNS: tl.constexpr, BACKGROUND: tl.constexpr, LAST: tl.constexpr, OF_OBJECTS: tl.constexpr,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr,
    Z_CLS: tl.constexpr, Z_LOC: tl.constexpr, SUMS: tl.constexpr, KINDS: tl.constexpr,
    FINISH: tl.constexpr, ACC: tl.constexpr, DENSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """As rows_kernel, of images [n] samples each; row_terms are [kept, images * n]."""
    SHAPE: tl.constexpr = (COLUMNS, BLOCK, KIND, ROWS, VECTOR)
    PLANES: tl.constexpr = KIND == "planes"
    CLASS: tl.constexpr = (SOFTMAX, CLASSIFY, CLASSIFY_PARAMS, SOFT)
    BOX: tl.constexpr = (
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS,
    )  # fmt: skip
    WEIGHT: tl.constexpr = (LAM, JOINT, CLASS_SCORE)
    IN_STRIPS: tl.constexpr = (COLUMNS, BLOCK, "strip", STRIP)
    TOGETHER: tl.constexpr = (DENSE and not PLANES, True)
    sums = no_sums(ROWS, STRIP if PLANES else ROWS, SUMS, ACC)
    program = tl.program_id(0)
    per_image = tl.num_programs(0) // images
    image = tl.full([], program // per_image, tl.int64)
    maps = (logits, boxes)
    if priors is not None:
        priors += image * stride_prior_image
    tensors = (labels, matched, targets, priors)
    factors = (alphas, 1, betas, 1, class_targets, 1, extras, 1, class_weights, 1)
    counts = (image, objects, ignore)

    for tile in range(program % per_image, tiles_of_image(levels, ROWS, PLANES), per_image):
        at, numbers, begin, first = level_of(tile, maps, levels, ROWS, PLANES)
        place = place_of(tile - begin, 0, at, numbers, image, SHAPE, DENSE, ROWS)
        kinds = kinds_of(
            labels, matched, counts, image * n + first + place[4], place[5], BACKGROUND, LAST,
            OF_OBJECTS,
        )  # fmt: skip
        more = dense_numbers(
            place, kinds, first, tensors, factors, row_terms, image, images, n, CLASS, BOX, WEIGHT,
            SUMS, SHAPE, TOGETHER, ACC, False if PLANES else None,
        )  # fmt: skip
        sums = add_those(sums, more, False if PLANES else None)
        if PLANES:
            if tl.max(kinds[1].to(tl.int32), 0) > 0:
                tl.debug_barrier()  # over what the tile wrote, after it
                for strip in range(0, ROWS, STRIP):
                    place_s = place_of(
                        tile - begin, strip, at, numbers, image, IN_STRIPS, DENSE, ROWS
                    )
                    kinds_s = kinds_of(
                        labels, matched, counts, image * n + first + place_s[4], place_s[5],
                        BACKGROUND, LAST, OF_OBJECTS,
                    )  # fmt: skip
                    if tl.max(kinds_s[1].to(tl.int32), 0) > 0:
                        more_s = dense_numbers(
                            place_s, kinds_s, first, tensors, factors, row_terms, image, images, n,
                            CLASS, BOX, WEIGHT, SUMS, IN_STRIPS, TOGETHER, ACC, True,
                        )  # fmt: skip
                        sums = add_those(sums, more_s, True)

    total = ()
    for i in tl.static_range(SUMS):
        total = total + (tl.sum(sums[i], 0).to(ACC),)
    tl.store(partial_sums + program * KINDS + tl.arange(0, KINDS), in_order(total, KINDS))
    if FINISH:
        results = (
            classification, regression, negative_weight, num_positives, extra_regression, scalars
        )  # fmt: skip
        if Z_CLS == "image" or Z_LOC == "image":
            finish_images_if_last(
                partial_sums, team_sums, image_sums, counters, images, results, z_cls, z_loc,
                z_cls_number, z_loc_number, ranks, Z_CLS, Z_LOC, JOINT, SUMS, KINDS,
            )  # fmt: skip
        else:
            finish_if_last(
                partial_sums, team_sums, counters, 1, results, (z_cls, 0), (z_loc, 0),
                z_cls_number, z_loc_number, ranks, Z_CLS, Z_LOC, JOINT, SUMS, KINDS,
            )  # fmt: skip


@triton.jit
def store_boxes(out, d, poison, inside, positive, TOGETHER: tl.constexpr):
    """The gradients of a tile's boxes: d of positives, 0 of others."""
    p, stride = out
    if TOGETHER:
        d0, d1, d2, d3 = d
        four = tl.reshape(tl.join(tl.join(d0, d2), tl.join(d1, d3)), (d0.shape[0], 4))
        four = tl.where(positive[:, None], four, 0.0) + poison[:, None]
        at = p[:, None] + tl.arange(0, 4)[None, :]
        tl.store(at, narrowed(four, at), mask=inside[:, None])
    else:
        for i in tl.static_range(4):
            tl.store(p, narrowed(tl.where(positive, d[i], 0.0) + poison, p), mask=inside)
            p += stride


@triton.jit
def dense_gradients(
    tile, strip, place, kinds, at, numbers, first, tensors, factors, row_terms, grad_logits,
    grad_boxes, grad_extras, of_image, image, images, n, CLASS: tl.constexpr, BOX: tl.constexpr,
    WEIGHT: tl.constexpr, CONSTANT: tl.constexpr, SHAPE: tl.constexpr, DENSE: tl.constexpr,
    ROWS: tl.constexpr, TOGETHER: tl.constexpr, ACC: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """All gradients of a tile, or of a strip of it; with SOME of its positives alone.

    Gradients have no gaps: where they lie follows from the sizes.
    """
    table, begin, z, _box, row, inside = place
    valid, positive, bad, y, _target = kinds
    if SOME is True:
        valid, inside = positive, positive
    boxes, targets, priors = boxes_of(tensors, place, kinds, first)
    out, out_y = (None, 1), None
    if grad_logits is not None:
        of_grad = place_of(tile, strip, (at[2], at[2]), numbers, image, SHAPE, True, ROWS)
        out, out_y = of_grad[0], of_grad[2][0] + y * of_grad[2][1]
    d, poison = tile_gradients(
        (table, load_first(table, begin, SHAPE), begin, z[0] + y * z[1], out, out_y),
        (image * n + first + row, inside, valid, positive, bad, y),
        boxes, targets, priors, factors, row_terms, images * n, of_image, grad_extras, CLASS, BOX,
        WEIGHT, CONSTANT, SHAPE, TOGETHER, ACC, SOME,
    )  # fmt: skip
    if grad_boxes is not None:
        grad = at[len(at) - 1]
        if DENSE:
            of_grad_box = place_of(tile, strip, (grad, grad), numbers, image, SHAPE, True, ROWS)
            out_box = of_grad_box[3]
        else:
            positions, anchors = numbers[0].to(tl.int64), numbers[1]
            start = grad + image * 4 * anchors * positions
            out_box = (
                start + (row // anchors) * numbers[10] + (row % anchors) * 4 * numbers[9],
                numbers[9],
            )
        store_boxes(out_box, d, poison, inside, positive, TOGETHER[0])


@triton.jit(do_not_specialize=[*SIZES],
            do_not_specialize_on_alignment=[
                *SELDOM_READ, "grad_classification", "grad_regression", "grad_extras",
            ])  # fmt: skip
def dense_gradients_kernel(
    logits, boxes, levels,
    labels, matched, targets, priors, stride_prior_image,
    alphas, betas, class_targets, extras, class_weights,
    row_terms, scalars, grad_classification, grad_regression,
    grad_logits, grad_boxes, grad_extras,
    images, n: tl.int64, objects, ignore,
    COLUMNS: tl.constexpr, BACKGROUND: tl.constexpr, LAST: tl.constexpr, OF_OBJECTS: tl.constexpr,
    SOFTMAX: tl.constexpr, CLASSIFY: tl.constexpr, CLASSIFY_PARAMS: tl.constexpr,
    REGRESS_0: tl.constexpr, REGRESS_1: tl.constexpr, REGRESS_2: tl.constexpr,
    REGRESS_3: tl.constexpr, PARAMS_0: tl.constexpr, PARAMS_1: tl.constexpr,
    PARAMS_2: tl.constexpr, PARAMS_3: tl.constexpr, FACTORS: tl.constexpr, ON_CODES: tl.constexpr,
    SCORE: tl.constexpr, SCORE_PARAMS: tl.constexpr, SOFT: tl.constexpr,
    DECODE: tl.constexpr, ENCODE: tl.constexpr, PULL: tl.constexpr, CODING_PARAMS: tl.constexpr,
    CODED_TARGETS: tl.constexpr,
    JOINT: tl.constexpr, CLASS_SCORE: tl.constexpr, LAM: tl.constexpr, CONSTANT: tl.constexpr,
    BY_IMAGE: tl.constexpr, ACC: tl.constexpr, DENSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """As gradients_kernel: grad_logits and grad_boxes are levels, each without gaps.

    Of logits in the format that KIND says, of boxes in one of strides of its own where not DENSE.
    BY_IMAGE: the scalars are [images, 5].
    """
    SHAPE: tl.constexpr = (COLUMNS, BLOCK, KIND, ROWS, VECTOR)
    PLANES: tl.constexpr = KIND == "planes"
    CLASS: tl.constexpr = (SOFTMAX, CLASSIFY, CLASSIFY_PARAMS, SOFT)
    BOX: tl.constexpr = (
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS,
    )  # fmt: skip
    WEIGHT: tl.constexpr = (LAM, JOINT, CLASS_SCORE)
    IN_STRIPS: tl.constexpr = (COLUMNS, BLOCK, "strip", STRIP)
    TOGETHER: tl.constexpr = (DENSE and not PLANES, True)
    program = tl.program_id(0)
    per_image = tl.num_programs(0) // images
    image = tl.full([], program // per_image, tl.int64)
    upstream = (grad_classification, 0, grad_regression, 0)
    of_image = load_group(scalars, upstream, image if BY_IMAGE else 0, ACC)
    maps = (logits, boxes)
    if grad_logits is not None:
        maps = maps + (grad_logits,)
    if grad_boxes is not None:
        maps = maps + (grad_boxes,)
    if priors is not None:
        priors += image * stride_prior_image
    tensors = (labels, matched, targets, priors)
    factors = (alphas, 1, betas, 1, class_targets, 1, extras, 1, class_weights, 1)
    counts = (image, objects, ignore)

    for tile in range(program % per_image, tiles_of_image(levels, ROWS, PLANES), per_image):
        at, numbers, begin, first = level_of(tile, maps, levels, ROWS, PLANES)
        tile -= begin
        place = place_of(tile, 0, at, numbers, image, SHAPE, DENSE, ROWS)
        kinds = kinds_of(
            labels, matched, counts, image * n + first + place[4], place[5], BACKGROUND, LAST,
            OF_OBJECTS,
        )  # fmt: skip
        dense_gradients(
            tile, 0, place, kinds, at, numbers, first, tensors, factors, row_terms, grad_logits,
            grad_boxes, grad_extras, of_image, image, images, n, CLASS, BOX, WEIGHT, CONSTANT,
            SHAPE, DENSE, ROWS, TOGETHER, ACC, False if PLANES else None,
        )  # fmt: skip
        if PLANES:
            if tl.max(kinds[1].to(tl.int32), 0) > 0:
                tl.debug_barrier()  # over what the tile wrote, after it
                for strip in range(0, ROWS, STRIP):
                    place_s = place_of(tile, strip, at, numbers, image, IN_STRIPS, DENSE, ROWS)
                    kinds_s = kinds_of(
                        labels, matched, counts, image * n + first + place_s[4], place_s[5],
                        BACKGROUND, LAST, OF_OBJECTS,
                    )  # fmt: skip
                    if tl.max(kinds_s[1].to(tl.int32), 0) > 0:
                        dense_gradients(
                            tile, strip, place_s, kinds_s, at, numbers, first, tensors, factors,
                            row_terms, grad_logits, grad_boxes, grad_extras, of_image, image,
                            images, n, CLASS, BOX, WEIGHT, CONSTANT, IN_STRIPS, DENSE, ROWS,
                            TOGETHER, ACC, True,
                        )  # fmt: skip
