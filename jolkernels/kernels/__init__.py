"""Triton kernels of the loss: one in each direction.

forward.py and backward.py hold the kernels, tiles.py how they go through a batch, samples.py what
they compute of a sample, finish.py how sums become the loss; the files named after a concern hold
the device functions that a choice passes to them as constexpr arguments. arguments.py picks these,
launch.py launches, direct.py without Triton's own launcher. A new loss is a dataclass and a name in
jolkernels.spec, a function and a row in jolkernels.formulas, and a device function with its
derivative and a row in a file here.
"""

from jolkernels.kernels.arguments import available
from jolkernels.kernels.launch import backward, forward

__all__ = ["available", "backward", "forward"]
