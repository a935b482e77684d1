"""What the C passes know of a call: struct call of samples.h, and how it is filled in."""

import ctypes
import math
from functools import lru_cache

from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch
from jolkernels.cpu.closed_form import wrong_columns
from jolkernels.registry import MOST_TERMS
from jolkernels.settings import Call, Settings

# The order of the enums in samples.h; IoU's modes follow each other.
CLASSIFICATION: dict[type, int] = {
    choice: i
    for i, choice in enumerate(
        (spec.CrossEntropy, spec.BCE, spec.Focal, spec.QualityFocal, spec.Varifocal, spec.MAL)
    )
}
IOU_MODES = ("linear", "log", "square")
REGRESSION: dict[type, int] = {
    spec.L1: 0, spec.SmoothL1: 1, spec.L2: 2, spec.IoU: 3, spec.GIoU: 6, spec.DIoU: 7,
    spec.CIoU: 8, spec.EIoU: 9, spec.SIoU: 10, spec.ShapeIoU: 11, spec.WIoU: 12, spec.NWD: 13,
    spec.InnerGap: 14, spec.FocalerGap: 15,
}  # fmt: skip
CODING: dict[type, int] = {spec.XYXY: 0, spec.Delta: 1, spec.LTRB: 2, spec.CXCYWH: 3}
SCORE: dict[type, int] = {
    type(None): 0, spec.IoU: 1, spec.GIoU: 2, spec.NWD: 3, spec.SimD: 4, spec.DotD: 5,
}  # fmt: skip

POINTERS = ("logits", "boxes", "grad_logits", "grad_boxes", "labels", "matched", "targets",
            "priors", "alphas", "betas", "class_targets", "extra", "class_weights", "groups",
            "rows", "grad_extra", "levels")  # fmt: skip
INTEGERS = ("logits_row", "boxes_row", "boxes_col", "labels_row", "targets_row", "targets_col",
            "priors_row", "priors_col", "alphas_row", "betas_row", "class_targets_row", "extra_row",
            "class_weights_row", "groups_row", "matched_row", "labels_image", "matched_image",
            "targets_image", "priors_image", "alphas_image", "betas_image", "class_targets_image",
            "extra_image", "labels_type", "matched_type", "of_objects", "objects", "num_levels",
            "images", "samples", "by_image", "columns", "box_columns", "background", "last",
            "ignore", "num_groups", "classification", "soft", "detached", "by_label", "coding",
            "score", "class_score", "joint", "constant", "terms", "on_codes",
            "on_corners")  # fmt: skip
NUMBERS = ("lam", "wrong_factor", "gamma", "alpha", "weight_0", "weight_1", "weight_2", "weight_3",
           "clip", "low_clip", "score_a", "score_b")  # fmt: skip
PROGRESS = ("count", "chunk", "next", "bad")


class Term(ctypes.Structure):
    """struct term of samples.h."""

    _fields_ = (
        ("factor", ctypes.c_double),
        ("kind", ctypes.c_int64),
        ("a", ctypes.c_double),
        ("b", ctypes.c_double),
    )


class RowsCall(ctypes.Structure):
    """struct call of samples.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in INTEGERS),
        *((name, ctypes.c_double) for name in NUMBERS),
        ("term", Term * MOST_TERMS),
        *((name, ctypes.c_int64) for name in PROGRESS),
        ("sums", ctypes.c_void_p),
        ("scalars", ctypes.c_void_p),
    )


TEMPLATES: dict[tuple[str, int, int], RowsCall | None] = {}


def template(settings: Settings, columns: int, box_columns: int) -> RowsCall | None:
    """What rows.c needs to know of the settings, for the given numbers of columns; None: not in C.

    Kept by the settings' text, as a tenth of a small batch's time would go into hashing settings.
    """
    key = settings.text, columns, box_columns
    if key not in TEMPLATES:
        if len(TEMPLATES) >= 1000:
            TEMPLATES.clear()
        TEMPLATES[key] = make_template(settings, columns, box_columns)
    return TEMPLATES[key]


def make_template(settings: Settings, columns: int, box_columns: int) -> RowsCall | None:
    """As `template`."""
    terms = settings.terms
    if (
        type(settings.classification) not in CLASSIFICATION
        or not all(type(loss) in REGRESSION for _, loss in terms)
        or type(settings.coding) not in CODING
        or type(settings.location_score) not in SCORE
    ):
        return None
    c = RowsCall(columns=columns, box_columns=box_columns, num_groups=1, lam=settings.lam)
    c.background, c.last = settings.background_label(columns), settings.last_label(columns)
    c.ignore = settings.ignore_index
    c.class_score, c.joint = bool(settings.class_score), settings.weighted
    c.constant = not settings.weights_have_gradient
    describe_classification(c, settings.classification)
    for i, (factor, loss) in enumerate(terms):
        c.term[i] = Term(factor, *describe_loss(loss))
        c.on_codes |= loss.on_codes
        c.on_corners |= not loss.on_codes
    c.terms = len(terms)
    describe_coding(c, settings.coding)
    c.score = SCORE[type(settings.location_score)]
    match settings.location_score:
        case spec.NWD(constant):
            c.score_a = constant
        case spec.SimD(m, n):
            c.score_a, c.score_b = m, n
        case spec.DotD(size):
            c.score_a = size
    return c


def describe_classification(c: RowsCall, choice: spec.Classification) -> None:
    """What rows.c needs to know of a classification loss; see classification.h."""
    c.classification, c.soft = CLASSIFICATION[type(choice)], choice.soft
    if not choice.softmax:
        c.wrong_factor, c.gamma, c.detached = wrong_columns(choice)
    match choice:
        case spec.Focal(alpha):
            c.alpha = alpha
        case spec.Varifocal(positives=positives):
            c.by_label = positives == "label"


def describe_loss(choice: spec.Regression) -> tuple[int, float, float]:
    """The kind and the parameters of a term of the box loss, as struct term has them."""
    kind = REGRESSION[type(choice)]
    match choice:
        case spec.IoU(mode):
            return kind + IOU_MODES.index(mode), 0, 0
        case spec.SmoothL1(beta=a) | spec.ShapeIoU(scale=a) | spec.InnerGap(ratio=a):
            return kind, a, 0
        case spec.NWD(a, b) | spec.FocalerGap(a, b):
            return kind, a, b
    return kind, 0, 0


def describe_coding(c: RowsCall, choice: spec.Coding) -> None:
    """What rows.c needs to know of a coding."""
    c.coding, c.low_clip = CODING[type(choice)], -math.inf
    if isinstance(choice, spec.Delta):
        c.weight_0, c.weight_1, c.weight_2, c.weight_3 = choice.weights
        c.clip = choice.clip
        if choice.low_clip is not None:
            c.low_clip = choice.low_clip
    elif isinstance(choice, spec.CXCYWH):
        c.weight_0, c.weight_1 = choice.pixels


@lru_cache
def chunk_rows(columns: int, num_groups: int | None) -> int:
    """Rows that a thread takes at a time; sums are added chunk by chunk.

    2^18 logits at most, but with groups, each of which has sums in every chunk. By shape alone:
    the bits do not depend on the threads.
    """
    most = 2**12
    return most if num_groups else min(most, 2 ** max(0, int(math.log2(2**18 / columns))))


def describe(batch: Batch, call: Call, rows: Tensor) -> RowsCall:
    """What rows.c needs to know of a call; `batch` and `rows` must stay alive.

    Raises:
        ValueError: the memory of a tensor does not hold its numbers.
    """
    (n, columns), box_columns = batch.logits.shape, batch.box_preds.shape[1]
    size, settings = batch.logits.itemsize, call.settings
    known = template(settings, columns, box_columns)
    assert known is not None  # or this would not be available
    c = RowsCall.from_buffer_copy(known)
    c.count, c.chunk = n, chunk_rows(columns, call.num_groups)
    c.logits, (c.logits_row, _) = memory("logits", batch.logits, n, columns, size)
    c.boxes, (c.boxes_row, c.boxes_col) = memory("box_preds", batch.box_preds, n, box_columns, size)
    c.labels, (c.labels_row,) = memory("labels", batch.labels, n, 1, 8)
    c.targets, (c.targets_row, c.targets_col) = memory(
        "target_boxes", batch.target_boxes, n, 4, size
    )
    if batch.priors is not None and settings.coding.uses_priors:
        c.priors, (c.priors_row, c.priors_col) = memory("priors", batch.priors, n, 4, size)
    if (alphas := batch.classification_weights) is not None:
        c.alphas, (c.alphas_row,) = memory("classification_weights", alphas, n, 1, size)
    if (betas := batch.regression_weights) is not None:
        c.betas, (c.betas_row,) = memory("regression_weights", betas, n, 1, size)
    if (goals := batch.class_targets) is not None:
        c.class_targets, (c.class_targets_row,) = memory("class_targets", goals, n, 1, size)
    if (extra := batch.extra_regression) is not None:
        c.extra, (c.extra_row,) = memory("extra_regression", extra, n, 1, size)
    if (weights := batch.class_weights) is not None:
        c.class_weights, (c.class_weights_row,) = memory("class_weights", weights, columns, 1, size)
    if batch.groups is not None:
        c.groups, (c.groups_row,) = memory("groups", batch.groups, n, 1, 8)
        c.num_groups = call.num_groups
    c.rows, _ = memory("rows", rows, settings.kept, n, size)
    return c


def memory(
    name: str, tensor: Tensor, rows: int, columns: int, size: int
) -> tuple[int, tuple[int, ...]]:
    """Where a tensor begins, and its strides, if C may read [rows, columns] numbers of it.

    Since the checks its storage may have been freed, or the tensor swapped for another by `.data`.

    Raises:
        ValueError: C would read beyond the storage.
    """
    strides = tensor.stride()
    last = (rows - 1) * strides[0] + (columns - 1) * strides[-1]
    wanted = (tensor.storage_offset() + last + 1) * size
    start = tensor.data_ptr()  # 0 of PyTorch's ZeroTensor, whatever the size of its storage
    got = tensor.untyped_storage().nbytes() if start else 0
    if got < wanted and rows and columns:
        raise ValueError(f"{name}: got a storage of {got} bytes, wanted {wanted}")
    return start, strides


def storage(
    name: str, tensor: Tensor, shape: tuple[int, ...], size: int
) -> tuple[int, tuple[int, ...]]:
    """As memory, of any shape.

    Raises:
        ValueError: C would read beyond the storage, or the tensor has another shape by now.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, wanted {list(shape)}")
    strides = tensor.stride()
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return start_of(name, tensor, last, 0 if 0 in shape else size), strides


def start_of(name: str, tensor: Tensor, last: int, size: int) -> int:
    """Where a tensor begins, if its storage holds number `last` of it."""
    wanted = (tensor.storage_offset() + last + 1) * size
    start = tensor.data_ptr()  # 0 of PyTorch's ZeroTensor, whatever the size of its storage
    got = tensor.untyped_storage().nbytes() if start else 0
    if got < wanted:
        raise ValueError(f"{name}: got a storage of {got} bytes, wanted {wanted}")
    return start
