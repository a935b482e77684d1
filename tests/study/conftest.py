"""Runs of the study."""

from dataclasses import replace

import pytest

from bench.study.runs import Run


@pytest.fixture
def run():
    """A run with these values, of a small detector for a few steps."""
    plain = Run("scenes-8-16", "tune", "faster_rcnn", "base", "", 0.0, 0.01, 0, 2, 48, 2)
    return lambda **changes: replace(plain, **changes)
