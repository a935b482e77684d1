"""A loss that the package does not know, added as its documentation says."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import gradients, random_batch

from jolkernels import JointOptimizationLoss, ops, reference, spec
from jolkernels.batch import make_batch

pytestmark = pytest.mark.kernels

if ops.HAS_TRITON:
    import triton
    import triton.language as tl

    from jolkernels.kernels import regression

    @triton.jit
    def quartic_loss(x0, x1, x2, x3, t0, t1, t2, t3, PARAMS: tl.constexpr):
        d0, d1, d2, d3 = x0 - t0, x1 - t1, x2 - t2, x3 - t3
        e0, e1, e2, e3 = d0 * d0 * d0, d1 * d1 * d1, d2 * d2 * d2, d3 * d3 * d3
        s = PARAMS[0]
        loss = s * (d0 * e0 + d1 * e1 + d2 * e2 + d3 * e3)
        return loss, 4 * s * e0, 4 * s * e1, 4 * s * e2, 4 * s * e3


@dataclass(frozen=True)
class Quartic:
    scale: float = 0.125
    on_codes: ClassVar[bool] = True


def quartic(x, target, choice):
    return choice.scale * ((x - target) ** 4).sum(1)


def test_spec_device_function_and_reference_are_enough(monkeypatch):
    monkeypatch.setitem(spec.CHOICES["regression"], "quartic", Quartic)
    monkeypatch.setitem(spec.NAMES, Quartic, "quartic")  # derived from CHOICES at import
    monkeypatch.setitem(spec.BY_CLASS_NAME, "Quartic", Quartic)
    monkeypatch.setitem(reference.REGRESSION, Quartic, quartic)
    if ops.HAS_TRITON:
        monkeypatch.setattr(regression, "quartic_loss", quartic_loss, raising=False)
    criterion = JointOptimizationLoss(regression="quartic", coding="delta")
    batch = random_batch(coding="delta")
    got = criterion(**batch)
    wanted = reference.joint_optimization_loss(
        make_batch(criterion.settings, **batch), criterion.settings
    )
    torch.testing.assert_close(tuple(got), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(got, batch), gradients(wanted, batch), rtol=1e-11, atol=1e-11
    )
