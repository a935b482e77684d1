"""The benchmark gives compilers empty caches: for one test, or all later ones compile anew."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def caches_where_they_were() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield
