"""Triton kernels of the loss: one row kernel in each direction.

forward.py and backward.py hold the kernels, launch.py the tables and tiles; the files named after a
concern hold the device functions that a choice passes to the kernels as constexpr arguments.
"""

from jolkernels.kernels.launch import backward, forward

__all__ = ["backward", "forward"]
