"""Joint Optimization Loss (JOL; Remote Sens. 2025, 17, 1476) for detectors of tiny objects."""

from jolkernels.loss import (
    JointLoss,
    JointOptimizationLoss,
    PerSample,
    joint_optimization_loss,
)

__all__ = ["JointLoss", "JointOptimizationLoss", "PerSample", "joint_optimization_loss"]
