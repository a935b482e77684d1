"""Every loss, score and coding of jolkernels.spec in plain PyTorch, which autograd differentiates.

The paper's equations around them are jolkernels.reference; the kernels and the C passes compute the
same numbers. One module a kind; each fills its part of registry.REFERENCE.
"""
