"""Measurements: what the compiler makes of the kernels, and how fast they are."""
