"""What a call of the loss costs the host, measured without a GPU.

    python -m bench host [--json FILE]

Triton gets a driver whose launches return at once, and the loss takes its Triton path on CPU
tensors: everything a call does before the GPU begins, in microseconds and by piece. What is not the
same on a GPU: memory is the CPU allocator's, and no device is made current.

Also counted: the GPU launches of a step, those of PyTorch around ours among them, and how often the
JIT compiles a kernel anew as the number of rows changes.
"""

import argparse
import json
import statistics
import sys
import time
import timeit
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.dense import cases as dense
from bench.dense.cases import Name
from bench.dense.inputs import make_inputs as make_dense_inputs
from bench.dense.providers import PROVIDERS as DENSE
from bench.fake_gpu import fake_gpu
from bench.loss.cases import CASES, Case
from bench.loss.inputs import Inputs, make_criterion
from bench.loss.measure import step
from detectors.utils.argument_types import file_to_write
from detectors.utils.parser import Parser
from detectors.utils.text_tables import aligned
from jolkernels import JointOptimizationLoss, loss, ops
from jolkernels.batch import make_batch
from jolkernels.kernels import launch

TIMED = CASES["rcnn-9"]
SEQUENCE = CASES["retinanet-8"]
ROWS = (1, 1_999, 2_048, 240_174)
"""Of the batches that may each need a variant of a kernel."""
DENSE_CASES = ("retinanet-8", "fcos-8")
SMALL = ((8, 8), (4, 4), (3, 3), (2, 2), (1, 1))
"""Sizes of levels, which do not matter to how many launches there are."""
SHIFT = 1
"""Numbers of float32 by which a tensor's memory is off 16 bytes."""


class CountKernels(TorchDispatchMode):
    """Counts the operators of PyTorch that are a launch on a GPU: not views, not allocations."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        tensors = any("Tensor" in str(r.type) for r in schema.returns)
        name = schema.name.removeprefix("aten::")
        if tensors and not view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.found[schema.name] += 1
        return func(*args, **(kwargs or {}))


def make_inputs(case: Case, rows: int, shift: int = 0) -> Inputs:
    """Tensors of a case with `rows` rows, whose numbers mean nothing.

    The memory of float32 tensors begins `shift` numbers after a multiple of 16 bytes.
    """
    slots = case.columns if case.head.class_specific else 1

    def zeros(columns: int) -> Tensor:
        return torch.zeros(rows * columns + shift)[shift:].view(rows, columns)

    logits, boxes = (zeros(width).requires_grad_() for width in (case.columns, 4 * slots))
    labels = torch.full((rows,), case.head.background_label(case.columns))
    return Inputs(logits, boxes, labels, zeros(4), zeros(4), zeros(4))


class Step:
    """A forward and a backward of a case."""

    def __init__(
        self, case: Case, rows: int, shift: int = 0, normalizer: str | float | None = None
    ) -> None:
        self.criterion: JointOptimizationLoss = make_criterion(case.head, "joint")
        self.x = make_inputs(case, rows, shift)
        norm = case.head.normalizer if normalizer is None else normalizer
        self.arguments: dict[str, Any] = {
            "logits": self.x.logits,
            "box_preds": self.x.boxes,
            "labels": self.x.labels,
            "target_boxes": self.x.targets,
            "priors": self.x.priors,
            "classification_normalizer": norm,
            "regression_normalizer": norm,
        }

    def forward(self) -> Any:
        """The loss."""
        return self.criterion(**self.arguments)

    def both(self) -> None:
        """As a training loop has it: total, backward, gradients of leaves that had none."""
        self.forward().total.backward()
        self.forget()

    def forget(self) -> None:
        """No gradients, so that the next are not added."""
        self.x.logits.grad = self.x.boxes.grad = None


class Nothing(torch.autograd.Function):
    """A loss of the same inputs and outputs that computes nothing: what autograd itself takes."""

    @staticmethod
    def forward(ctx: Any, call: Any, *batch: Any) -> tuple[Tensor, Tensor]:  # noqa: D102
        ctx.save_for_backward(*batch)
        return torch.empty(()), torch.empty(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        logits, boxes, *others = ctx.saved_tensors
        return None, torch.empty_like(logits), torch.empty_like(boxes), *(None for _ in others)


@dataclass(frozen=True)
class Times:
    """Microseconds of a call.

    Attributes:
        forward_us: of the forward, called as a module.
        both_us: of forward, total and backward.
        library_us: both less what autograd itself takes.
        pieces_us: where they go, and what is part of other pieces.
    """

    forward_us: float
    both_us: float
    library_us: float
    pieces_us: dict[str, float]


Functions = Mapping[str, tuple[Any, str]]
"""Name of a piece, {} being the kernel's → where the function is."""
PIECES: Functions = {
    "checks": (loss, "make_batch"),
    "operator or not": (ops, "in_eager_mode"),
    "kernels or C": (ops, "implementation"),
    "plan of the forward": (launch, "plan_forward"),
    "plan of the backward": (launch, "plan_backward"),
    "launch of {}": (launch.Launch, "__call__"),
}
PARTS: Functions = {
    "of the plans: their keys": (launch, "kind_of"),
    "of the plans: the samples' tensors": (launch, "inputs"),
}


def times(count: int = 2000) -> Times:
    """Medians of `count` steps."""

    def median(call: Callable[[], object]) -> float:
        return 1e6 * statistics.median(timeit.repeat(call, number=1, repeat=count))

    with fake_gpu():
        step = Step(TIMED, TIMED.rows)
        batch, call = make_batch(step.criterion.settings, **step.arguments)
        scalars = launch.plan_forward(batch, call)[0].scalars
        looked = median(lambda: ops.math.isnan(scalars.view(-1)[4]))

        def autograd_alone() -> None:
            classification, regression = Nothing.apply(call, *batch)
            (classification + regression).backward()
            step.forget()

        step.both()
        forward_us, both_us = median(step.forward) - looked, median(step.both) - looked
        autograd_us = median(autograd_alone)
        pieces = {**pieces_of(step, PIECES, count), "autograd's own": autograd_us}
        pieces["the rest"] = both_us - sum(pieces.values())
        parts = pieces_of(step, PARTS, count)
    return Times(forward_us, both_us, both_us - autograd_us, pieces | parts)


def pieces_of(step: Step, functions: Functions, count: int) -> dict[str, float]:
    """Microseconds a step in these functions: the median of their calls, times the calls."""
    spent: dict[str, list[float]] = defaultdict(list)

    def watched(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            taken = time.perf_counter() - began
            kernel = args[0].plan.kernel.fn.__name__ if "{}" in label else ""
            spent[label.format(kernel)].append(taken)
            return result

        return call

    with ExitStack() as stack:
        for label, (owner, name) in functions.items():
            watch = watched(label, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, watch))
        for _ in range(count):
            step.both()
    return {
        label: 1e6 * statistics.median(taken) * len(taken) / count for label, taken in spent.items()
    }


def launches(case: Case = TIMED, normalizer: str | float | None = None) -> Counter[str]:
    """GPU launches of a step by name: our kernels, and PyTorch's operators as aten::NAME."""
    with fake_gpu() as seen, mock.patch.object(ops, "in_eager_mode", lambda tensors: True):
        step = Step(case, case.rows, normalizer=normalizer)
        step.both()
        seen.launched.clear()
        with CountKernels(seen.launched):
            step.both()
        return seen.launched


def dense_launches(name: str, provider: str) -> Counter[str]:
    """GPU launches by name from a dense head's outputs and its matcher's to the gradients.

    They are as many whatever the sizes.
    """
    case = replace(dense.CASES[name], sizes=SMALL)
    with fake_gpu() as seen, mock.patch.object(ops, "in_eager_mode", lambda tensors: True):
        x, loss = make_dense_inputs(case, torch.float32, "cpu"), DENSE[provider].make(case)
        assert loss is not None
        step(loss, x)
        seen.launched.clear()
        with CountKernels(seen.launched):
            step(loss, x)
        return seen.launched


def variants(rows: Sequence[int] = ROWS, shifts: Sequence[int] = (0,)) -> Counter[str]:
    """How often each kernel is compiled for batches of these rows and shifts, in turn."""
    with fake_gpu() as seen:
        for shift in shifts:
            for n in rows:
                Step(SEQUENCE, n, shift).both()
        return seen.compiled


def measure() -> dict[str, Any]:
    """Everything, as --json writes it."""
    return {
        **asdict(times()),
        "launches": dict(launches()),
        "launches_number": dict(launches(normalizer=512.0)),
        "launches_dense": {
            f"{case}, {provider}": dense_launches(case, provider).total()
            for case in DENSE_CASES
            for provider in (Name.DENSE, Name.FLAT, Name.TORCHVISION)
        },
        "variants": dict(variants()),
        "variants_shifted": dict(variants(ROWS[2:3], (0, SHIFT))),
    }


def report(found: Mapping[str, Any]) -> str:
    """The measurements as text."""
    named = {
        "forward": found["forward_us"],
        "forward, total and backward": found["both_us"],
        "less autograd's own": found["library_us"],
    }

    def table(title: str, rows: Mapping[str, Any], form: str) -> str:
        return "\n".join([title, *aligned([(k, f"{v:{form}}") for k, v in rows.items()])]) + "\n"

    head = f"{TIMED.rows:,} x {TIMED.columns}, {TIMED.head.classification}, float32"
    rows = ", ".join(f"{n:,}" for n in ROWS)
    return "\n".join(
        [
            table(f"Microseconds of a call ({head})", named, ".1f"),
            table("By piece", found["pieces_us"], ".1f"),
            table("GPU launches of a step", found["launches"], "d"),
            table("With numbers as normalizers", found["launches_number"], "d"),
            table(
                "GPU launches from a dense head's outputs to their gradients",
                found["launches_dense"],
                "d",
            ),
            table(f"Variants compiled for N = {rows}", found["variants"], "d"),
            table(
                f"Variants compiled for N = {ROWS[2]:,}, and for memory {4 * SHIFT} bytes off",
                found["variants_shifted"],
                "d",
            ),
        ]
    )


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog=prog, description=__doc__.split("\n")[0])
    made.add_argument(
        "--json", metavar="FILE", type=file_to_write, help="also write the figures to FILE"
    )
    return made


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, print, write; 0 done, 2 unusable arguments."""
    options = parser(prog).parse_args(arguments)
    try:
        found = measure()
        print(report(found), end="")
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    except (OSError, RuntimeError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0
