"""Benchmarks: the loss, its compiled kernels, detectors, training loop, loading, evaluation."""
