"""In this folder the loss runs compiled kernels, on the machine of bench.ptx."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def kernels_as_compiled() -> Iterator[None]:
    from bench.ptx import compiled_kernels

    with compiled_kernels():
        yield
