"""Microbenchmarks of the loss against what people would use instead."""
