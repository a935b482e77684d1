"""In this folder runs draw no curves."""

from collections.abc import Iterator

import pytest
from pictures import draw_no_curves


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    """In forks of this process, too."""
    with pytest.MonkeyPatch.context() as patch:
        draw_no_curves(patch)
        yield
