"""The row passes in C, compiled at the first use if there is a C compiler.

`available` says whether a call can run here; other calls, and machines without a compiler, use
jolkernels.cpu.tensors. JOLKERNELS_NATIVE=0 turns this off.

Why C: each of some 300 tensor operations costs microseconds, most of the time at 1,024 rows, and a
pass over memory, most of it at 200,000. One pass in C avoids both (bench/results has its times),
and all combinations of its choices compile together in a second.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from jolkernels import spec
from jolkernels.batch import Batch, Forward, accumulator
from jolkernels.cpu.sums import Sums, finish
from jolkernels.settings import Call, Settings

SOURCE = Path(__file__).with_name("rows.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
         "-shared", "-fPIC")  # fmt: skip
CHUNK = 4096  # as in rows.c; sums are added chunk by chunk: the bits do not depend on the threads
SERIAL = 32768  # elements of logits below which threads cost more than they save

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
PROGRESS = ("count", "next")


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
    """The compiled passes, from the user's cache or built now; None if neither is possible."""
    compiler = next(
        (c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None
    )
    if compiler is None or os.environ.get("JOLKERNELS_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(build(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # Runtime: no home folder
        logging.getLogger(__name__).info("no C passes, using tensor operations: %s", error)
        return None


def build(compiler: str) -> Path:
    """Compile rows.c for this processor, unless the cache has it; returns the library's path."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    what = "\0".join((SOURCE.read_text(), flags, platform.machine(), *FLAGS)).encode() + version
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jolkernels"
    built = cache / f"rows-{hashlib.sha256(what).hexdigest()[:16]}.so"
    if not built.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "rows.so"
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, capture_output=True, check=True)
            made.replace(built)  # atomically: another process may be building too
    return built


def available(batch: Batch, settings: Settings) -> bool:
    """Whether rows.c computes this: the choices, float32 or float64 throughout, rows contiguous."""
    score, dtype = settings.location_score, accumulator(batch)
    floats = (batch.logits, batch.box_preds, batch.target_boxes, batch.priors,
              batch.classification_weights, batch.regression_weights)  # fmt: skip
    return (
        type(settings.classification) in CLASSIFICATION
        and type(settings.regression) in REGRESSION
        and type(settings.coding) in CODING
        and (score is None or isinstance(score, spec.IoU))
        and batch.logits.device.type == "cpu"
        and all(t is None or t.dtype == dtype for t in floats)
        and batch.logits.stride(1) == 1
        and library() is not None
    )


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
    """What rows.c needs to know of a call; `batch` and `rows` must stay alive."""
    made = template(settings, batch.logits.shape[1], batch.box_preds.shape[1])
    c = RowsCall.from_buffer_copy(made)
    c.count = len(batch.labels)
    c.logits, c.logits_row = batch.logits.data_ptr(), batch.logits.stride(0)
    c.boxes, (c.boxes_row, c.boxes_col) = batch.box_preds.data_ptr(), batch.box_preds.stride()
    c.labels, c.labels_row = batch.labels.data_ptr(), batch.labels.stride(0)
    c.targets = batch.target_boxes.data_ptr()
    c.targets_row, c.targets_col = batch.target_boxes.stride()
    if batch.priors is not None:
        c.priors, (c.priors_row, c.priors_col) = batch.priors.data_ptr(), batch.priors.stride()
    if (alphas := batch.classification_weights) is not None:
        c.alphas, c.alphas_row = alphas.data_ptr(), alphas.stride(0)
    if (betas := batch.regression_weights) is not None:
        c.betas, c.betas_row = betas.data_ptr(), betas.stride(0)
    c.rows = rows.data_ptr()
    return c


@lru_cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the chunks; ctypes releases the GIL during a call."""
    return ThreadPoolExecutor(threads, thread_name_prefix="jolkernels")


os.register_at_fork(after_in_child=pool.cache_clear)  # a child process has no threads


def run(function: str, c: RowsCall, dtype: torch.dtype) -> None:
    """Run a pass of rows.c, in threads where these pay; each takes chunks until none are left."""
    passes = getattr(library(), f"{function}_{'f32' if dtype == torch.float32 else 'f64'}")
    call = ctypes.byref(c)
    helpers = 0
    if c.count * c.columns >= SERIAL:
        helpers = min(torch.get_num_threads(), -(-c.count // CHUNK)) - 1
    waiting = [pool(helpers).submit(passes, call) for _ in range(helpers)]
    try:
        passes(call)
    finally:  # an interrupt must not free what they still write
        wait(waiting)


def forward(batch: Batch, call: Call) -> Forward:
    """As jolkernels.cpu.tensors.forward."""
    settings, dtype, n = call.settings, accumulator(batch), len(batch.labels)
    # Always on the CPU: a default device set by the user must not reach the C pointers.
    rows = torch.empty(settings.kept, n, dtype=dtype, device="cpu")
    sums = torch.empty(-(-n // CHUNK), len(Sums._fields), dtype=torch.float64, device="cpu")
    c = describe(batch, settings, rows)
    c.sums = sums.data_ptr()
    run("forward", c, dtype)
    return finish(Sums(*sums.sum(0).tolist()), rows, batch, call)


def backward(
    batch: Batch,
    settings: Settings,
    rows: Tensor,
    scalars: Tensor,
    grad_classification: Tensor,
    grad_regression: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """As jolkernels.cpu.tensors.backward."""
    c = describe(batch, settings, rows)
    c.w_neg, c.mean_neg, inv_z_cls, inv_z_loc, _ = scalars.tolist()
    c.g_cls, c.g_loc = float(grad_classification), float(grad_regression)
    c.g_cls *= inv_z_cls if c.g_cls else 0  # not 0 * inf
    c.g_loc *= inv_z_loc if c.g_loc else 0
    grad_logits, grad_boxes = (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else None
        for x, needed in zip((batch.logits, batch.box_preds), needs, strict=True)
    )
    c.grad_logits = None if grad_logits is None else grad_logits.data_ptr()
    c.grad_boxes = None if grad_boxes is None else grad_boxes.data_ptr()
    run("backward", c, rows.dtype)
    return grad_logits, grad_boxes
