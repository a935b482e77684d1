"""With JOLKERNELS_TEST_COMPILED=1 the loss runs compiled kernels, on the machine of bench.ptx."""

from collections.abc import Iterator

import pytest
from cases import COMPILED


@pytest.fixture(scope="session", autouse=True)
def kernels_as_compiled() -> Iterator[None]:
    if not COMPILED:
        yield
        return
    from bench.ptx import compiled_kernels

    with compiled_kernels():
        yield
