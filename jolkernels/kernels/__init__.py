"""Triton kernels of the loss: one row kernel in each direction.

forward.py and backward.py hold the kernels, launch.py picks device functions and tiles; the files
named after a concern hold the device functions that a choice passes to the kernels as constexpr
arguments. A new loss is a device function here named after it, with its derivative, its spec and
entry in CHOICES (jolkernels.spec), and its row in jolkernels.reference.
"""

from jolkernels.kernels.launch import backward, forward

__all__ = ["backward", "forward"]
