"""Every choice, on kernels compiled for sm_90: values and gradients are those of the equations."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from cases import CODINGS, HEADS, INTERPRETED, REGRESSIONS, SCORES, random_batch
from exact import assert_exact

pytest.importorskip("triton")
if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from jolkernels import JointOptimizationLoss, spec

pytestmark = pytest.mark.compiled

CODED = {"cxcywh": spec.CXCYWH(scale=(32.0, 32.0))}  # so that scores in pixels take it


def covering(axes: Sequence[Sequence], together: int) -> list[tuple]:
    """Few combinations with each `together` values of different axes in one of them (greedy)."""
    kinds = list(itertools.combinations(range(len(axes)), together))
    parts = {
        case: frozenset((kind, *(case[i] for i in kind)) for kind in kinds)
        for case in itertools.product(*axes)
    }
    missing = set().union(*parts.values())
    made = []
    while missing:
        best = max(parts, key=lambda case: len(parts[case] & missing))
        made.append(best)
        missing -= parts[best]
    return made


def combinations() -> list:
    """Every choice, and slowly every pair of choices."""
    axes = HEADS, REGRESSIONS, CODINGS, [*SCORES, None]
    quick = covering(axes, 1)
    pairs = [case for case in covering(axes, 2) if case not in quick]
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in pairs)]


@pytest.mark.parametrize(("head", "regression", "coding", "score"), combinations())
def test_every_choice(head, regression, coding, score) -> None:
    criterion = JointOptimizationLoss(
        head[0], regression, CODED.get(coding, coding), background=head[1], location_score=score
    )
    assert_exact(criterion, random_batch(head, coding, n=70, dtype=torch.float32))
