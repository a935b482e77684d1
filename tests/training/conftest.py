"""In this folder runs draw no curves, which takes longer than their few steps do."""

from collections.abc import Iterator

import pytest

from detectors.evaluation import report


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> Iterator[None]:
    """Files stand for them, in forks of this process too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pr_curves", "pr_classes"):
            patch.setattr(report, name, lambda runs, path: path.touch())
        yield
