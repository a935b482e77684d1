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

SOURCE = Path(__file__).with_name("rows.c")
CHUNK = 4096  # as in rows.c; sums are added chunk by chunk: the bits do not depend on the threads
SERIAL = 32768  # elements of logits below which threads cost more than they save
SECTION_HEADERS = slice(40, 48), slice(58, 60), slice(60, 62)  # offset, size, number; in 64 bits
LARGE = 2**20  # elements of logits from which a missing library is worth a warning

# The order of the enums in rows.c.
CLASSIFICATION: dict[type, int] = {spec.CrossEntropy: 0, spec.Focal: 1}
REGRESSION: dict[type, int] = {spec.L1: 0, spec.SmoothL1: 1, spec.IoU: 2, spec.GIoU: 3}
CODING: dict[type, int] = {spec.XYXY: 0, spec.Delta: 1, spec.LTRB: 2}

POINTERS = ("logits", "boxes", "labels", "targets", "priors", "alphas", "betas", "rows",
            "grad_logits", "grad_boxes")  # fmt: skip
INTEGERS = ("logits_row", "boxes_row", "boxes_col", "labels_row", "targets_row", "targets_col",
            "priors_row", "priors_col", "alphas_row", "betas_row", "columns", "box_columns",
            "background", "last", "ignore", "classification", "regression", "coding", "iou_score",
            "class_score", "joint", "constant")  # fmt: skip
NUMBERS = ("lam", "focal_alpha", "focal_gamma", "beta", "weight_0", "weight_1", "weight_2",
           "weight_3", "clip", "w_neg", "mean_neg", "g_cls", "g_loc")  # fmt: skip
PROGRESS = ("count", "next", "bad")


class RowsCall(ctypes.Structure):
    """struct call of rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in INTEGERS),
        *((name, ctypes.c_double) for name in NUMBERS),
        *((name, ctypes.c_int64) for name in PROGRESS),
        ("sums", ctypes.c_void_p),
    )


@lru_cache
def library() -> ctypes.CDLL | None:
    """The passes built for this processor; None if there are none, or with JOLKERNELS_NATIVE=0."""
    if os.environ.get("JOLKERNELS_NATIVE") == "0":
        return None
    avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # AVX2 or AVX512
    for name in ("rows_avx2", "rows") if avx2 else ("rows",):
        with contextlib.suppress(OSError, ValueError):  # not there, or not ours
            path = SOURCE.with_name(name + EXTENSION_SUFFIXES[0])
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
    """What setup.py makes of the source, and rows.c exports."""
    return int.from_bytes(hashlib.sha256(SOURCE.read_bytes()).digest()[:8])


def built_from(loaded: ctypes.CDLL) -> int:
    """The digest of the source that a library was built from: another one has another RowsCall."""
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
    score, dtype = settings.location_score, accumulator(batch)
    floats = (batch.logits, batch.box_preds, batch.target_boxes, batch.priors,
              batch.classification_weights, batch.regression_weights)  # fmt: skip
    in_c = (
        batch[9:] == (None,) * 4
        and getattr(settings.regression, "mode", "linear") == "linear"
        and getattr(settings.coding, "low_clip", None) is None
        and type(settings.classification) in CLASSIFICATION
        and type(settings.regression) in REGRESSION
        and type(settings.coding) in CODING
        and (score is None or isinstance(score, spec.IoU))
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
    c = RowsCall(columns=columns, box_columns=box_columns)
    c.background, c.last = settings.background_label(columns), settings.last_label(columns)
    c.ignore = settings.ignore_index
    c.classification = CLASSIFICATION[type(settings.classification)]
    c.regression = REGRESSION[type(settings.regression)]
    c.coding = CODING[type(settings.coding)]
    c.iou_score, c.class_score = settings.location_score is not None, bool(settings.class_score)
    c.joint, c.constant = settings.weighted, not settings.weights_have_gradient
    c.lam = settings.lam
    if isinstance(settings.classification, spec.Focal):
        c.focal_alpha, c.focal_gamma = settings.classification.alpha, settings.classification.gamma
    if isinstance(settings.regression, spec.SmoothL1):
        c.beta = settings.regression.beta
    if isinstance(settings.coding, spec.Delta):
        c.weight_0, c.weight_1, c.weight_2, c.weight_3 = settings.coding.weights
        c.clip = settings.coding.clip
    return c


def describe(batch: Batch, settings: Settings, rows: Tensor) -> RowsCall:
    """What rows.c needs to know of a call; `batch` and `rows` must stay alive.

    Raises:
        ValueError: the memory of a tensor does not hold its numbers.
    """
    (n, columns), box_columns = batch.logits.shape, batch.box_preds.shape[1]
    size = accumulator(batch).itemsize
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
    # Always on the CPU: a default device set by the user must not reach the C pointers.
    rows = torch.empty(settings.kept, n, dtype=dtype, device="cpu")
    sums = torch.empty(-(-n // CHUNK), 7, dtype=torch.float64, device="cpu")
    c = describe(batch, settings, rows)
    c.sums, c.alive = sums.data_ptr(), (batch, rows, sums)
    run("forward", c, dtype)
    total = sums.sum(0).tolist()
    return finish([Sums(*total, total[1], 0)], rows, batch, call)  # type: ignore[call-arg]


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
    c = describe(batch, call.settings, rows)
    c.w_neg, c.mean_neg, inv_z_cls, inv_z_loc, _ = scalars.tolist()
    c.g_cls, c.g_loc = float(grad_classification), float(grad_regression)
    c.g_cls *= inv_z_cls if c.g_cls else 0  # not 0 * inf
    c.g_loc *= inv_z_loc if c.g_loc else 0
    grad_logits, grad_boxes = (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else None
        for x, needed in zip((batch.logits, batch.box_preds), needs[:2], strict=True)
    )
    c.grad_logits = None if grad_logits is None else grad_logits.data_ptr()
    c.grad_boxes = None if grad_boxes is None else grad_boxes.data_ptr()
    c.alive = batch, rows, grad_logits, grad_boxes
    run("backward", c, accumulator(batch))
    if c.bad:
        check_labels(batch, call)
    return grad_logits, grad_boxes, None
