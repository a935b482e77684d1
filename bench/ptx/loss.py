"""The loss by its compiled kernels, on tensors on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor

from bench.ptx.runs import Execution, named_arguments, run
from jolkernels import ops
from jolkernels.kernels.launch import Launch

OUTPUTS = {
    "rows_kernel": {"row_terms", "partial_sums"},
    "finish_kernel": {"classification", "regression", "negative_weight", "num_positives",
                      "extra_regression", "scalars"},
    "gradients_kernel": {"grad_logits", "grad_boxes", "grad_extras"},
}  # fmt: skip


def outputs(call: Launch) -> list[str]:
    """Names of the arguments that a kernel of the loss fills."""
    filled = OUTPUTS[call.kernel.fn.__name__]
    return [n for n, v in named_arguments(call) if n in filled and isinstance(v, Tensor)]


@contextmanager
def compiled_kernels(**options: Any) -> Iterator[list[Execution]]:
    """Within it every launch of the loss, forward and backward, is by `run` with these options.

    Yields the executions, in a list that grows. What `run` finds is raised where the loss, or its
    backward pass, is called.
    """
    done: list[Execution] = []

    def launched(call: Launch) -> None:
        done.append(run(call, outputs(call), **options))

    # What has a kernel takes it on the CPU, too, where kernels are interpreted.
    with (
        mock.patch.object(ops, "INTERPRETED", True),
        mock.patch.object(Launch, "__call__", launched),
    ):
        yield done
