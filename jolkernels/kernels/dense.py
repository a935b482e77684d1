"""The kernels of the dense entrance: those of rows, on levels of feature maps.

Programs are the images' in equal parts: of G programs and B images, number p has tiles p % (G / B),
and every G / B further, of image p // (G / B).
"""

import triton
import triton.language as tl

from jolkernels.kernels.backward import load_group, narrowed, tile_gradients
from jolkernels.kernels.finish import finish_if_last, finish_images_if_last, in_order
from jolkernels.kernels.forward import add_each, tile_numbers
from jolkernels.kernels.levels import kinds_of, level_of, place_of, tiles_of_image
from jolkernels.kernels.tiles import load_first

SIZES = ["stride_prior_image", "images", "n", "objects", "ignore"]
SELDOM_READ = [
    "labels", "matched", "alphas", "betas", "class_targets", "extras", "class_weights", "row_terms",
    "scalars", "z_cls", "z_loc",
]  # fmt: skip


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
    PLANES: tl.constexpr = VECTOR is not None
    CLASS: tl.constexpr = (SOFTMAX, CLASSIFY, CLASSIFY_PARAMS, SOFT)
    BOX: tl.constexpr = (
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS,
    )  # fmt: skip
    WEIGHT: tl.constexpr = (LAM, JOINT, CLASS_SCORE)
    TOGETHER: tl.constexpr = (DENSE and not PLANES, True)
    zero = tl.zeros([ROWS], ACC)
    none = tl.zeros([ROWS], tl.int32)
    sums = (none, none, zero, zero, zero, zero, none)
    if SUMS > 7:
        sums = sums + (zero, zero)
    program = tl.program_id(0)
    per_image = tl.num_programs(0) // images
    image = tl.full([], program // per_image, tl.int64)
    maps = (logits, boxes)
    if priors is not None:
        priors += image * stride_prior_image
    factors = (alphas, 1, betas, 1, class_targets, 1, extras, 1, class_weights, 1)
    counts = (image, objects, ignore)

    for tile in range(program % per_image, tiles_of_image(levels, ROWS, PLANES), per_image):
        at, numbers, first_tile, first = level_of(tile, maps, levels, ROWS, PLANES)
        table, begin, z, of_boxes, row, inside = place_of(
            tile - first_tile, at, numbers, image, SHAPE, DENSE
        )
        blocks = load_first(table, begin, SHAPE)
        row += first
        samples = image * n + row
        valid, positive, bad, y, target = kinds_of(
            labels, matched, counts, samples, inside, BACKGROUND, LAST, OF_OBJECTS
        )
        more = tile_numbers(
            (table, blocks, begin, z[0] + y * z[1]), (samples, inside, valid, positive, bad, y),
            of_boxes, (targets + target * 4, 1), (None if priors is None else priors + row * 4, 1),
            factors, row_terms, images * n, CLASS, BOX, WEIGHT, SUMS, SHAPE, TOGETHER, ACC,
        )  # fmt: skip
        sums = add_each(sums, more)

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
def box_gradient_of(tile, grad, numbers, image, row, SHAPE: tl.constexpr, DENSE: tl.constexpr):
    """Where the gradients of the boxes of a tile's rows begin, and the stride of their numbers."""
    if DENSE:
        place = place_of(tile, (grad, grad), numbers, image, SHAPE, True)[3]
    else:
        positions, anchors = numbers[0].to(tl.int64), numbers[1]
        start = grad + image * 4 * anchors * positions
        place = (start + row // anchors * numbers[10] + row % anchors * 4 * numbers[9], numbers[9])
    return place


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
    PLANES: tl.constexpr = VECTOR is not None
    CLASS: tl.constexpr = (SOFTMAX, CLASSIFY, CLASSIFY_PARAMS, SOFT)
    BOX: tl.constexpr = (
        (REGRESS_0, REGRESS_1, REGRESS_2, REGRESS_3), (PARAMS_0, PARAMS_1, PARAMS_2, PARAMS_3),
        FACTORS, ON_CODES, SCORE, SCORE_PARAMS, DECODE, ENCODE, PULL, CODING_PARAMS, CODED_TARGETS,
    )  # fmt: skip
    WEIGHT: tl.constexpr = (LAM, JOINT, CLASS_SCORE)
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
    factors = (alphas, 1, betas, 1, class_targets, 1, extras, 1, class_weights, 1)
    counts = (image, objects, ignore)

    for tile in range(program % per_image, tiles_of_image(levels, ROWS, PLANES), per_image):
        at, numbers, first_tile, first = level_of(tile, maps, levels, ROWS, PLANES)
        tile -= first_tile
        table, begin, z, of_boxes, of_level, inside = place_of(
            tile, at, numbers, image, SHAPE, DENSE
        )
        blocks = load_first(table, begin, SHAPE)
        row = first + of_level
        samples = image * n + row
        valid, positive, bad, y, target = kinds_of(
            labels, matched, counts, samples, inside, BACKGROUND, LAST, OF_OBJECTS
        )
        # Gradients have no gaps: where they lie follows from the sizes.
        out, out_y = (None, 1), None
        if grad_logits is not None:
            of_grad = place_of(tile, (at[2], at[2]), numbers, image, SHAPE, True)
            out, out_y = of_grad[0], of_grad[2][0] + y * of_grad[2][1]
        d, poison = tile_gradients(
            (table, blocks, begin, z[0] + y * z[1], out, out_y),
            (samples, inside, valid, positive, bad, y),
            of_boxes, (targets + target * 4, 1), (None if priors is None else priors + row * 4, 1),
            factors, row_terms, images * n, of_image, grad_extras, CLASS, BOX, WEIGHT, CONSTANT,
            SHAPE, TOGETHER, ACC,
        )  # fmt: skip
        if grad_boxes is not None:
            of_grad_boxes = box_gradient_of(
                tile, at[len(at) - 1], numbers, image, of_level, SHAPE, DENSE
            )
            store_boxes(of_grad_boxes, d, poison, inside, positive, TOGETHER[0])
