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
from typing import Any

import torch
from torch import Tensor

from jolkernels.batch import Batch, Forward, check_labels, empty_gradients
from jolkernels.cpu.rows_call import RowsCall, chunk_rows, describe, template
from jolkernels.cpu.sums import Sums, finish
from jolkernels.settings import Call, Settings

FOLDER = Path(__file__).parent
VARIANTS = {"AVX512": ("rows_avx512", "rows_avx2", "rows"), "AVX2": ("rows_avx2", "rows")}
"""What runs on a processor by what PyTorch calls it, the fastest first."""
SERIAL = 32768  # elements of logits below which threads cost more than they save
SECTION_HEADERS = slice(40, 48), slice(58, 60), slice(60, 62)  # offset, size, number; in 64 bits
LARGE = 2**20  # elements of logits from which a missing library is worth a warning


@lru_cache
def library() -> ctypes.CDLL | None:
    """The passes built for this processor; None if there are none, or with JOLKERNELS_NATIVE=0."""
    if os.environ.get("JOLKERNELS_NATIVE") == "0":
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    for name in VARIANTS.get(capability, ("rows",)):
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
    logits, dtype = batch.logits, batch.logits.dtype
    if not logits.is_cpu or logits.stride()[1] != 1 or dtype not in SUFFIXES:
        return False
    for t in (batch.box_preds, batch.target_boxes, batch.priors,
              batch.classification_weights, batch.regression_weights, batch.class_targets,
              batch.extra_regression, batch.class_weights):  # fmt: skip
        if t is not None and t.dtype is not dtype:
            return False
    if template(settings, logits.shape[1], batch.box_preds.shape[1]) is None:
        return False
    if library() is None and logits.numel() >= LARGE:
        warn_once()
    return library() is not None


@lru_cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the chunks; ctypes releases the GIL during a call."""
    return ThreadPoolExecutor(threads, thread_name_prefix="jolkernels")


os.register_at_fork(after_in_child=pool.cache_clear)  # a child process has no threads


SUFFIXES = {torch.float32: "_f32", torch.float64: "_f64"}
"""Of the passes in rows.c."""


def run(function: str, c: RowsCall, chunks: int, dtype: torch.dtype) -> None:
    """Run a pass of rows.c, in threads where these pay; each takes chunks until none are left.

    `c.alive` holds all that the pass reads and writes: after an interrupt a thread may still do so.

    Raises:
        MemoryError: no thread had the memory that a pass over levels of bfloat16 needs.
    """
    passes, call = getattr(library(), function + SUFFIXES[dtype]), ctypes.byref(c)
    helpers = chunks - 1
    if helpers > 0:
        pays = c.count * c.columns >= SERIAL
        helpers = min(helpers, torch.get_num_threads() - 1) if pays else 0
    waiting: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # no more threads to be had: with those that there are
        for _ in range(helpers):
            waiting.append(pool(helpers).submit(passes, call))
    passes(call)
    if waiting:
        wait(waiting)
    if c.next < chunks:
        raise MemoryError("no memory for a run of levels in bfloat16")


def forward(batch: Batch, call: Call) -> Forward:
    """As jolkernels.cpu.tensors.forward."""
    logits, each = batch.logits, len(Sums._fields)
    n = logits.shape[0]
    chunk = chunk_rows(logits.shape[1], call.num_groups)
    chunks, numbers = max(1, -(-n // chunk)), (call.num_groups or 1) * each
    rows = logits.new_empty(call.settings.kept, n)  # torch.empty takes twice as long
    sums = (ctypes.c_double * (chunks * numbers))()
    c = describe(batch, call, rows)
    c.sums, c.alive = ctypes.addressof(sums), (batch, rows, sums)
    run("forward", c, chunks, logits.dtype)
    if chunks == 1:  # a tensor's sum would take a small batch several microseconds
        total = sums[:]
    else:
        total = torch.frombuffer(sums, dtype=torch.float64).view(chunks, numbers).sum(0).tolist()
    totals = [Sums._make(total[i : i + each]) for i in range(0, numbers, each)]
    if totals[0].bad:  # counted in the first
        totals = [group._replace(bad=totals[0].bad) for group in totals]
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
    grad_logits, grad_boxes, grad_extra = empty_gradients(batch, needs)
    c.scalars = ctypes.addressof(of_groups)
    c.grad_logits = None if grad_logits is None else grad_logits.data_ptr()
    c.grad_boxes = None if grad_boxes is None else grad_boxes.data_ptr()
    c.grad_extra = None if grad_extra is None else grad_extra.data_ptr()
    c.alive = batch, rows, of_groups, grad_logits, grad_boxes, grad_extra
    run("backward", c, -(-c.count // c.chunk), batch.logits.dtype)
    if c.bad:
        check_labels(batch, call)
    return grad_logits, grad_boxes, grad_extra


def upstream(
    scalars: Tensor, grad_classification: Tensor, grad_regression: Tensor
) -> ctypes.Array[ctypes.c_double]:
    """Of each group w_neg, A_neg / P, and the upstream gradients over the normalisers."""
    of_groups = scalars.tolist(), grad_classification.tolist(), grad_regression.tolist()
    groups: Any = (of_groups,) if scalars.ndim == 1 else zip(*of_groups, strict=True)
    numbers: list[float] = []
    for (w_neg, mean_neg, inv_z_cls, inv_z_loc, _), g_cls, g_loc in groups:
        g_cls *= inv_z_cls if g_cls else 0  # not 0 * inf
        g_loc *= inv_z_loc if g_loc else 0
        numbers += w_neg, mean_neg, g_cls, g_loc
    return (ctypes.c_double * len(numbers))(*numbers)
