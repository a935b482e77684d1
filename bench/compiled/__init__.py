"""What the compiled kernels cost, without a GPU: their SASS, its executed path, a time model."""
