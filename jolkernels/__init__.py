"""Joint Optimization Loss (JOL; Remote Sens. 2025, 17, 1476) for detectors of tiny objects.

The names below are imported at their first use (PEP 562): jolkernels.spec costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jolkernels.loss import (
        JointLoss,
        JointOptimizationLoss,
        PerSample,
        joint_optimization_loss,
        joint_optimization_loss_dense,
    )

__all__ = [
    "JointLoss",
    "JointOptimizationLoss",
    "PerSample",
    "joint_optimization_loss",
    "joint_optimization_loss_dense",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("jolkernels.loss"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
