"""The loss by its compiled kernels, on tensors on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict
from unittest import mock

import torch
from torch import Tensor

from bench.ptx.errors import PtxError
from bench.ptx.runs import Execution, argument, named_arguments, run
from jolkernels import ops
from jolkernels.kernels.launch import Launch

RESULTS = ("classification", "regression", "negative_weight", "num_positives",
           "extra_regression", "scalars")  # fmt: skip


class Roles(TypedDict):
    """Names of the tensors that a kernel writes, as `run` takes them."""

    outputs: list[str]
    workspace: list[str]
    scratch: list[str]


def roles(call: Launch) -> Roles:
    """The tensors that a kernel of the loss writes."""
    name = call.plan.kernel.fn.__name__
    outputs: tuple[str, ...] = RESULTS
    workspace: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    if name.endswith("gradients_kernel"):
        outputs = "grad_logits", "grad_boxes", "grad_extras"
    elif name.endswith("rows_kernel"):
        outputs = ("row_terms", *(RESULTS if call.plan.constants["FINISH"] else ()))
        workspace, scratch = ("partial_sums", "team_sums", "image_sums"), ("counters",)
    given = [n for n, value in named_arguments(call) if isinstance(value, Tensor)]
    return {
        "outputs": [n for n in given if argument(n) in outputs],
        "workspace": [n for n in given if argument(n) in workspace],
        "scratch": [n for n in given if argument(n) in scratch],
    }


def execute_launch(call: Launch, **options: Any) -> Execution:
    """`run` a launch of the loss, from memory that holds NaN, and look at its counters.

    Raises:
        PtxError: what `run` finds; counters that are not zeros afterwards.
    """
    written, arguments = roles(call), dict(named_arguments(call))
    for name in (*written["outputs"], *written["workspace"]):
        tensor = arguments[name]
        tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
    done = run(call, **written, **options)
    for name in written["scratch"]:
        if arguments[name].any():
            raise PtxError(f"{done.name} leaves {name} that are not zeros")
    return done


@contextmanager
def compiled_kernels(**options: Any) -> Iterator[list[Execution]]:
    """Within it every launch of the loss, forward and backward, is by `run` with these options.

    Yields the executions, in a list that grows. What `run` finds is raised where the loss, or its
    backward pass, is called.
    """
    done: list[Execution] = []

    def launched(call: Launch) -> None:
        done.append(execute_launch(call, **options))

    # What has a kernel takes it on the CPU, too, where kernels are interpreted.
    with (
        mock.patch.object(ops, "INTERPRETED", True),
        mock.patch.object(Launch, "__call__", launched),
    ):
        yield done
