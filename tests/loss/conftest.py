"""With JOLKERNELS_TEST_COMPILED=1 the loss runs compiled kernels, on the machine of bench.ptx."""

from collections.abc import Iterator

import pytest
from cases import COMPILED, INTERPRETED


@pytest.fixture(scope="session", autouse=True)
def kernels_as_compiled() -> Iterator[None]:
    if not COMPILED:
        yield
        return
    from bench.ptx import compiled_kernels

    with compiled_kernels():
        yield


@pytest.fixture(scope="session", autouse=True)
def quicker_interpreter() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    from interpreter import language_patched_once

    with language_patched_once():
        yield
