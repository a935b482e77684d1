"""Adapters that put the Joint Optimization Loss into other people's detection frameworks."""
