"""Triton kernels of the loss: one row kernel in each direction.

forward.py and backward.py hold the kernels, samples.py what both compute of a sample, launch.py
picks device functions and tiles. The files named after a concern hold the device functions that a
choice passes to the kernels as constexpr arguments. A new loss is a dataclass and a name in
jolkernels.spec, a function and a row in jolkernels.formulas, and a device function with its
derivative and a row in a file here.
"""

from jolkernels.kernels.arguments import available
from jolkernels.kernels.launch import backward, forward

__all__ = ["available", "backward", "forward"]
