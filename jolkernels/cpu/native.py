"""The row passes in C, which installation compiles if there is a C compiler (setup.py).

`available` says whether a call can run here; other calls, and installations without the passes, use
jolkernels.cpu.tensors. JOLKERNELS_NATIVE=0 turns this off.

Why C: each of some 300 tensor operations costs microseconds, most of the time at 1,024 rows, and a
pass over memory, most of it at 200,000. One pass in C avoids both (bench/results has its times),
and all combinations of its choices compile together in seconds.
"""

import contextlib
import ctypes
import hashlib
import math
import os
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, Forward, accumulator, check_labels
from jolkernels.cpu.sums import Sums, finish
from jolkernels.settings import Call, Settings

FOLDER = Path(__file__).parent
CHUNK = 4096  # as in rows.c; sums are added chunk by chunk: the bits do not depend on the threads
SERIAL = 32768  # elements of logits below which threads cost more than they save
SECTION_HEADERS = slice(40, 48), slice(58, 60), slice(60, 62)  # offset, size, number; in 64 bits
LARGE = 2**20  # elements of logits from which a missing library is worth a warning

# The order of the enums in rows.c; IoU's modes follow each other.
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

POINTERS = ("logits", "boxes", "labels", "targets", "priors", "alphas", "betas", "class_targets",
            "extra", "class_weights", "groups", "rows", "grad_logits", "grad_boxes",
            "grad_extra")  # fmt: skip
INTEGERS = ("logits_row", "boxes_row", "boxes_col", "labels_row", "targets_row", "targets_col",
            "priors_row", "priors_col", "alphas_row", "betas_row", "class_targets_row", "extra_row",
            "class_weights_row", "groups_row", "columns", "box_columns", "background", "last",
            "ignore", "num_groups", "classification", "soft", "detached", "by_label", "coding",
            "score", "class_score", "joint", "constant", "terms", "on_codes",
            "on_corners")  # fmt: skip
NUMBERS = ("lam", "wrong_factor", "gamma", "alpha", "weight_0", "weight_1", "weight_2", "weight_3",
           "clip", "low_clip", "score_a", "score_b")  # fmt: skip
PROGRESS = ("count", "next", "bad")
TERMS = 8  # of a box loss, at most


class Term(ctypes.Structure):
    """struct term of rows.c."""

    _fields_ = (
        ("factor", ctypes.c_double),
        ("kind", ctypes.c_int64),
        ("a", ctypes.c_double),
        ("b", ctypes.c_double),
    )


class RowsCall(ctypes.Structure):
    """struct call of rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in INTEGERS),
        *((name, ctypes.c_double) for name in NUMBERS),
        ("term", Term * TERMS),
        *((name, ctypes.c_int64) for name in PROGRESS),
        ("sums", ctypes.c_void_p),
        ("scalars", ctypes.c_void_p),
    )


@lru_cache
def library() -> ctypes.CDLL | None:
    """The passes built for this processor; None if there are none, or with JOLKERNELS_NATIVE=0."""
    if os.environ.get("JOLKERNELS_NATIVE") == "0":
        return None
    avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # AVX2 or AVX512
    for name in ("rows_avx2", "rows") if avx2 else ("rows",):
        with contextlib.suppress(OSError, ValueError):  # not there, or not ours
            path = FOLDER / (name + EXTENSION_SUFFIXES[0])
            if not is_truncated(path) and built_from(loaded := ctypes.CDLL(str(path))) == digest():
                return loaded
    return None


def is_truncated(path: Path) -> bool:
    """Whether a library in ELF ends before its section headers: to load it would end the process.

    A full disk or a killed installation leaves such files. Other formats are the loader's affair.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] != b"\x7fELF":
        return False
    start, size, count = (int.from_bytes(head[at], sys.byteorder) for at in SECTION_HEADERS)
    return len(head) < 64 or path.stat().st_size < start + size * count


def digest() -> int:
    """What setup.py makes of the sources, and rows.c exports."""
    sources = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]")))
    return int.from_bytes(hashlib.sha256(sources).digest()[:8])


def built_from(loaded: ctypes.CDLL) -> int:
    """The digest of the sources that a library was built from: others have another RowsCall."""
    return ctypes.c_uint64.in_dll(loaded, "jolkernels_source").value


@lru_cache
def warn_once() -> None:
    """Say why a large batch takes its time."""
    if os.environ.get("JOLKERNELS_NATIVE") != "0":
        warnings.warn(
            "jolkernels has no C passes for this processor, or older ones: on a CPU the loss takes "
            "several times as long. Install a C compiler, then jolkernels again.",
            RuntimeWarning,
            stacklevel=2,
        )


def available(batch: Batch, settings: Settings) -> bool:
    """Whether rows.c computes this: the choices, float32 or float64 throughout, rows contiguous."""
    dtype, terms = accumulator(batch), settings.terms
    floats = (batch.logits, batch.box_preds, batch.target_boxes, batch.priors,
              batch.classification_weights, batch.regression_weights, batch.class_targets,
              batch.extra_regression, batch.class_weights)  # fmt: skip
    in_c = (
        type(settings.classification) in CLASSIFICATION
        and all(type(loss) in REGRESSION for _, loss in terms)
        and len(terms) <= TERMS
        and type(settings.coding) in CODING
        and type(settings.location_score) in SCORE
        and batch.logits.device.type == "cpu"
        and all(t is None or t.dtype == dtype for t in floats)
        and batch.logits.stride(1) == 1
    )
    if in_c and library() is None and batch.logits.numel() >= LARGE:
        warn_once()
    return in_c and library() is not None


@lru_cache
def template(settings: Settings, columns: int, box_columns: int) -> RowsCall:
    """What rows.c needs to know of the settings, for the given numbers of columns."""
    c = RowsCall(columns=columns, box_columns=box_columns, num_groups=1, lam=settings.lam)
    c.background, c.last = settings.background_label(columns), settings.last_label(columns)
    c.ignore = settings.ignore_index
    c.class_score, c.joint = bool(settings.class_score), settings.weighted
    c.constant = not settings.weights_have_gradient
    describe_classification(c, settings.classification)
    for i, (factor, loss) in enumerate(settings.terms):
        c.term[i] = Term(factor, *describe_loss(loss))
        c.on_codes |= loss.on_codes
        c.on_corners |= not loss.on_codes
    c.terms = len(settings.terms)
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
    c.classification, c.soft, c.wrong_factor = CLASSIFICATION[type(choice)], choice.soft, 1
    match choice:
        case spec.Focal(alpha, gamma):
            c.alpha, c.gamma, c.wrong_factor = alpha, gamma, 1 - alpha
        case spec.QualityFocal(beta):
            c.gamma = beta
        case spec.Varifocal(alpha, gamma, detach, positives):
            c.wrong_factor, c.gamma = alpha, gamma
            c.detached, c.by_label = detach, positives == "label"
        case spec.MAL(gamma):
            c.gamma, c.detached = gamma, True


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


def describe(batch: Batch, call: Call, rows: Tensor) -> RowsCall:
    """What rows.c needs to know of a call; `batch` and `rows` must stay alive.

    Raises:
        ValueError: the memory of a tensor does not hold its numbers.
    """
    (n, columns), box_columns = batch.logits.shape, batch.box_preds.shape[1]
    size, settings = accumulator(batch).itemsize, call.settings
    c = RowsCall.from_buffer_copy(template(settings, columns, box_columns))
    c.count = n
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


@lru_cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the chunks; ctypes releases the GIL during a call."""
    return ThreadPoolExecutor(threads, thread_name_prefix="jolkernels")


os.register_at_fork(after_in_child=pool.cache_clear)  # a child process has no threads


def run(function: str, c: RowsCall, dtype: torch.dtype) -> None:
    """Run a pass of rows.c, in threads where these pay; each takes chunks until none are left.

    `c.alive` holds all that the pass reads and writes: after an interrupt a thread may still do so.
    """
    passes = getattr(library(), f"{function}_{'f32' if dtype == torch.float32 else 'f64'}")
    call = ctypes.byref(c)
    helpers = 0
    if c.count * c.columns >= SERIAL:
        helpers = min(torch.get_num_threads(), -(-c.count // CHUNK)) - 1
    waiting: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # no more threads to be had: with those that there are
        for _ in range(helpers):
            waiting.append(pool(helpers).submit(passes, call))
    passes(call)
    wait(waiting)


def forward(batch: Batch, call: Call) -> Forward:
    """As jolkernels.cpu.tensors.forward."""
    settings, dtype, n = call.settings, accumulator(batch), batch.labels.shape[0]
    groups = call.num_groups or 1
    # Always on the CPU: a default device set by the user must not reach the C pointers.
    rows = torch.empty(settings.kept, n, dtype=dtype, device="cpu")
    sums = torch.empty(-(-n // CHUNK), groups, len(Sums._fields), dtype=torch.float64, device="cpu")
    c = describe(batch, call, rows)
    c.sums, c.alive = sums.data_ptr(), (batch, rows, sums)
    run("forward", c, dtype)
    totals = [Sums(*total) for total in sums.sum(0).tolist()]
    if (bad := sum(total.bad for total in totals)) > 0:  # counted in the first group
        totals = [total._replace(bad=bad) for total in totals]
    return finish(totals, rows, batch, call)


def backward(
    batch: Batch,
    call: Call,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As jolkernels.cpu.tensors.backward."""
    c = describe(batch, call, rows)
    of_groups = upstream(scalars, grad_classification, grad_regression)
    grad_logits, grad_boxes, grad_extra = (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if needed and x is not None
        else None
        for x, needed in zip(
            (batch.logits, batch.box_preds, batch.extra_regression), needs, strict=True
        )
    )
    c.scalars = ctypes.addressof(of_groups)
    c.grad_logits = None if grad_logits is None else grad_logits.data_ptr()
    c.grad_boxes = None if grad_boxes is None else grad_boxes.data_ptr()
    c.grad_extra = None if grad_extra is None else grad_extra.data_ptr()
    c.alive = batch, rows, of_groups, grad_logits, grad_boxes, grad_extra
    run("backward", c, accumulator(batch))
    if c.bad:
        check_labels(batch, call)
    return grad_logits, grad_boxes, grad_extra


def upstream(
    scalars: Tensor, grad_classification: Tensor, grad_regression: Tensor
) -> ctypes.Array[ctypes.c_double]:
    """Of each group w_neg, A_neg / P, and the upstream gradients over the normalisers."""
    numbers: list[float] = []
    for (w_neg, mean_neg, inv_z_cls, inv_z_loc, _), g_cls, g_loc in zip(
        scalars.view(-1, 5).tolist(),
        grad_classification.view(-1).tolist(),
        grad_regression.view(-1).tolist(),
        strict=True,
    ):
        numbers += w_neg, mean_neg  # then not 0 * inf
        numbers += g_cls * inv_z_cls if g_cls else 0.0, g_loc * inv_z_loc if g_loc else 0.0
    return (ctypes.c_double * len(numbers))(*numbers)
