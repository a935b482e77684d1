"""Agreement first; then time, launches, waits and memory of a provider, on a CPU or a GPU.

Times are of forward and backward: on a CPU by the clock, on a GPU by events (what a caller sees,
the host's work included where the GPU waits for it) and by replay of a CUDA graph (the kernels
alone), with the L2 cache flushed before each sample (cold) and not (warm). Providers take turns, a
sample each, so that a machine's moods meet all of them.
"""

import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.loss.providers import Loss


class Leaves(Protocol):
    """What a loss is given, at least."""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are for."""


class Batch(Leaves, Protocol):
    """What a loss is given: bench.loss.inputs.Inputs, or a dense head's outputs."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that there is."""

    def with_leaves(self, leaves: Sequence[Tensor]) -> "Batch":
        """The same with these leaves."""


TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 5e-4,
    torch.float16: 1e-3,
    torch.bfloat16: 1e-3,
}
"""Largest ||out - wanted|| / ||wanted|| of the loss and of each gradient, `wanted` rounded to the
dtype of `out`. Detached weights or lambda = 2.01 are off by 0.005 and more."""
DIRECTIONS = ("forward", "backward", "both")
WARM_UP = 2
FEWEST, MOST = 5, 400
"""Samples of a provider."""
LAUNCH = 200_000
"""Cycles that a GPU is kept busy for while a graph is launched: 0.1 ms."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Sample:
    """A median and the quantiles around it, of `count` samples."""

    median: float
    low: float
    high: float
    count: int


def summary(values: Sequence[float]) -> Sample:
    """Median, 20 % and 80 % quantiles."""
    if len(values) < 2:
        return Sample(values[0], values[0], values[0], 1)
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return Sample(statistics.median(values), cuts[0], cuts[3], len(values))


def step(loss: Loss, x: Batch) -> tuple[Tensor, ...]:
    """The loss and its gradients for the leaves that it reads."""
    total = loss(x)
    gradients = torch.autograd.grad(total, x.leaves, allow_unused=True)
    return total.detach(), *(g for g in gradients if g is not None)


def error(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest ||out - wanted|| / ||wanted||, `wanted` rounded as `out` is; infinite for NaN."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        rounded = b.to(a.dtype).double()
        value = float((a.double() - rounded).norm() / rounded.norm().clamp(min=1e-30))
        worst = max(worst, math.inf if math.isnan(value) else value)
    return worst


def device_of(x: Leaves) -> torch.device:
    """Where a batch is."""
    return x.leaves[0].device


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def first_call(loss: Loss, x: Batch) -> tuple[float, tuple[Tensor, ...]]:
    """Seconds of the first forward and backward, compilation included, and what they gave."""
    synchronize(device_of(x))
    began = time.perf_counter()
    got = step(loss, x)
    synchronize(device_of(x))
    return time.perf_counter() - began, got


Mark = Callable[[], Any]
"""Notes the time: a number of seconds, or an event."""
Spans = dict[str, dict[str, list[float]]]
"""Provider → direction → milliseconds; the i-th of all providers were taken in one round."""


def times(losses: Mapping[str, Loss], x: Leaves, seconds: float, *, cold: bool = False) -> Spans:
    """By the clock, or on a GPU by events from an idle queue on; `seconds` for each provider."""
    device = device_of(x)
    mark = _event if device.type == "cuda" else time.perf_counter
    flush = _flusher(device) if cold else _nothing
    marks: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in losses}
    for kept in _rounds(seconds * len(losses)):
        for name, loss in losses.items():
            flush()
            synchronize(device)
            began = mark()
            total = loss(x)
            between = mark()
            torch.autograd.grad(total, x.leaves, allow_unused=True)
            if kept:
                marks[name].append((began, between, mark()))
            del total
        synchronize(device)
    return {
        name: {
            "forward": [_span(a, b) for a, b, _ in taken],
            "backward": [_span(b, c) for _, b, c in taken],
            "both": [_span(a, c) for a, _, c in taken],
        }
        for name, taken in marks.items()
    }


@dataclass(frozen=True)
class Graphs:
    """CUDA graphs of a provider.

    Attributes:
        graphs: by direction. "backward" reads, and may overwrite, what "forward" saved, and has
            to be replayed after it.
        gave: the loss and its gradients as the last replays left them, of "forward" and "backward"
            and of "both".
    """

    graphs: dict[str, torch.cuda.CUDAGraph]
    gave: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def capture(loss: Loss, x: Batch) -> Graphs:
    """Graphs of a provider that does not wait for the GPU.

    An AccumulateGrad node belongs to the stream it was made on and lives as long as any graph with
    its leaf does. Backward passes wait for that stream; were it the default one, which never
    captures, the capture would fail. So warm-up and captures share a stream and leaves of their
    own.

    After a capture that failed, PyTorch 2.11 can make no others.

    Raises:
        RuntimeError: what failed within the capture is its context, if that had any.
    """
    x = x.with_leaves([leaf.detach().requires_grad_() for leaf in x.leaves])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graphs = {direction: torch.cuda.CUDAGraph() for direction in DIRECTIONS}
    with torch.cuda.stream(stream):  # which a failed capture does not leave by itself
        for _ in range(WARM_UP):
            step(loss, x)
        with torch.cuda.graph(graphs["forward"], stream=stream):
            total = loss(x)
        with torch.cuda.graph(graphs["backward"], graphs["forward"].pool(), stream):
            gradients = torch.autograd.grad(total, x.leaves, allow_unused=True)
        with torch.cuda.graph(graphs["both"], stream=stream):
            both = step(loss, x)
    apart = total.detach(), *(g for g in gradients if g is not None)
    return Graphs(graphs, (apart, both))


def graph_times(
    captured: Mapping[str, Graphs], device: torch.device, seconds: float, *, cold: bool
) -> Spans:
    """Of replays of CUDA graphs: the kernels alone."""
    flush = _flusher(device) if cold else _nothing
    spans: Spans = {name: {d: [] for d in DIRECTIONS} for name in captured}
    for kept in _rounds(seconds * len(captured) * len(DIRECTIONS)):
        marks = []
        for name, provider in captured.items():
            for direction, graph in provider.graphs.items():
                flush()
                # The replay is in the queue before the first event is reached.
                torch.cuda._sleep(LAUNCH)
                began = _event()
                graph.replay()
                marks.append((spans[name][direction], began, _event()))
        torch.cuda.synchronize()
        for values, began, ended in marks if kept else ():
            values.append(_span(began, ended))
    return spans


def _rounds(seconds: float) -> Iterator[bool]:
    """WARM_UP times False, then True FEWEST times and until the time is spent, at most MOST."""
    yield from [False] * WARM_UP
    deadline = time.perf_counter() + seconds
    for i in range(MOST):
        if i >= FEWEST and time.perf_counter() > deadline:
            return
        yield True


def _nothing() -> None:
    """Instead of a flush."""


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _span(began: Any, ended: Any) -> float:
    """Milliseconds between two marks."""
    if isinstance(began, float):
        return 1e3 * (ended - began)
    return float(began.elapsed_time(ended))


def _flusher(device: torch.device) -> Callable[[], object]:
    """Overwrites more than the L2 cache holds."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    return buffer.zero_


def copy_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Gigabytes a second of a large copy, bytes read plus bytes written."""
    source = torch.rand(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    mark: Mark = _event if device.type == "cuda" else time.perf_counter
    marks = []
    for _ in range(12):
        began = mark()
        target.copy_(source)
        marks.append((began, mark()))
    synchronize(device)
    milliseconds = statistics.median(_span(a, b) for a, b in marks[2:])
    return 2 * source.numel() * 4 / milliseconds / 1e6


@dataclass(frozen=True)
class Counts:
    """Of one forward and backward.

    Attributes:
        launches: kernels, copies and fills on a GPU; on a CPU the innermost operators of PyTorch.
        waits: times the host waits for the GPU; None on a CPU.
        saved: bytes kept between forward and backward, besides the inputs.
        peak: largest number of bytes allocated at a time, besides the inputs; it has the gradients.
    """

    launches: int
    waits: int | None
    saved: int
    peak: int


def counts(loss: Loss, x: Batch) -> Counts:
    """Launches and waits by the profiler, memory by the allocator or by the profiler's notes."""
    device = device_of(x)
    step(loss, x)
    synchronize(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _silent(), profile(activities=activities, profile_memory=device.type == "cpu") as seen:
        step(loss, x)
    events = seen.events()
    if device.type == "cuda":
        with profile(activities=activities) as idle:  # the profiler waits, too
            pass
        launches = sum(
            e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation
            for e in events
        )
        waits = sum(e.name in WAITS for e in events) - sum(e.name in WAITS for e in idle.events())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, x)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        launches = sum(e.name.startswith("aten::") and not e.cpu_children for e in events)
        waits = None
        peak = _peak(seen)
    return Counts(launches, waits, _saved(loss, x), peak)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the profiler's C++ writes to standard error as it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _peak(seen: Any) -> int:
    """The largest sum of the profiler's allocations and frees, in their order."""
    changes = [
        (e.start_ns(), e.nbytes())
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


def _saved(loss: Loss, x: Batch) -> int:
    """Bytes of the storages that autograd keeps and that are not the inputs'."""
    inputs = {t.untyped_storage().data_ptr() for t in x.tensors}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that held its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        total = loss(x)
    del total
    return sum(kept.values())
