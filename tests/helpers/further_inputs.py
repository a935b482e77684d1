"""Batches with every input of the loss beyond those of its first version."""

from typing import Any

import torch
from cases import random_batch

from jolkernels import JointOptimizationLoss

FURTHER = ("class_targets", "extra_regression", "class_weights", "groups")


def everything(
    name: str = "focal",
    *,
    n: int = 40,
    num_groups: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[JointOptimizationLoss, dict[str, Any]]:
    """A loss and a batch for it; NaN and bad groups in rows that do not count."""
    batch: dict[str, Any] = random_batch((name, "last"), "delta", n=n, dtype=dtype)
    g, labels = torch.Generator().manual_seed(1), batch["labels"]
    positive = (labels >= 0) & (labels < 5)

    def share(count: int) -> torch.Tensor:
        return torch.rand(count, generator=g, dtype=torch.float64).to(dtype)

    batch["extra_regression"] = share(n).where(positive, torch.nan).requires_grad_()
    if name != "cross_entropy":
        batch["class_targets"] = share(n).where(positive, torch.nan)
    batch["class_weights"] = share(batch["logits"].shape[1])
    batch["groups"] = torch.randint(0, num_groups, (n,), generator=g).where(labels >= 0, 2**40)
    batch = {k: v.detach().to(device).requires_grad_(v.requires_grad) for k, v in batch.items()}
    return JointOptimizationLoss(name, "giou", "delta"), batch | {"num_groups": num_groups}


def leaves(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the loss is differentiated for."""
    return batch["logits"], batch["box_preds"], batch["extra_regression"]


def results(loss: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The fields of a loss [G], and its gradients with other upstream gradients in each group."""
    by_group = torch.linspace(0.5, 1.5, len(loss[0]), dtype=loss[0].dtype, device=loss[0].device)
    total = (by_group * (1.3 * loss[0] + 0.7 * loss[1])).sum()
    return *(x.detach() for x in loss), *torch.autograd.grad(total, leaves(batch))
