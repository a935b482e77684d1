"""The loss on a CPU against the base loss it replaces and the paper's equations in PyTorch.

    python -m bench.cpu [--threads 2] [--out FILE.md]

Forward and backward of cross entropy, delta coding, l1, float32, a quarter of the rows positive.
The providers take turns in one process and ratios are those of neighbours; a machine that is busy
with something else still gives nonsense, as PyTorch's threads wait for each other. Results are
compared first: no ratio is printed for numbers that differ.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from jolkernels import JointOptimizationLoss

SIZES = ((200_000, 81, 21), (200_000, 9, 21), (1_024, 9, 201))  # N, C, repetitions
CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
CRITERION = JointOptimizationLoss("cross_entropy", "l1", "delta")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(n: int, columns: int) -> Inputs:
    """logits [n, C], deltas [n, 4], labels [n], target boxes [n, 4] and priors [n, 4]."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, columns - 1, (n,), generator=g)
    labels[torch.rand(n, generator=g) > 0.25] = columns - 1
    corner, size = torch.rand(n, 2, generator=g) * 800, 8 + torch.rand(n, 2, generator=g) * 24
    priors = torch.cat((corner, corner + size), 1)
    targets = priors + torch.rand(n, 4, generator=g) * 3
    logits = torch.randn(n, columns, generator=g).requires_grad_()
    deltas = (0.2 * torch.randn(n, 4, generator=g)).requires_grad_()
    return logits, deltas, labels, targets, priors


def base(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, priors: Tensor) -> Tensor:
    """Eq. 1: F.cross_entropy, and F.l1_loss of the positives against targets already encoded."""
    positive = (labels != logits.shape[1] - 1).nonzero()[:, 0]
    box = F.l1_loss(deltas[positive], targets[positive], reduction="sum")
    return F.cross_entropy(logits, labels) + box / len(labels)


def eager(
    logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, priors: Tensor
) -> Tensor:
    """Eq. 2 to 4 as one would write them with PyTorch and torchvision."""
    positive = (labels != logits.shape[1] - 1).nonzero()[:, 0]
    negative = (labels == logits.shape[1] - 1).nonzero()[:, 0]
    s_cls = logits.softmax(1)[positive, labels[positive]]
    target, prior = targets[positive], priors[positive]
    box = CODER.decode_single(deltas[positive], prior)
    sides = torch.min(box[:, 2:], target[:, 2:]) - torch.max(box[:, :2], target[:, :2])
    overlap = sides.clamp(min=0).prod(1)
    areas = (box[:, 2:] - box[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1)
    w_pos = 2 - overlap / (areas - overlap) * s_cls
    l_cls = F.cross_entropy(logits, labels, reduction="none")
    encoded = CODER.encode_single(target, prior)
    l_loc = F.l1_loss(deltas[positive], encoded, reduction="none").sum(1)
    classification = (w_pos * l_cls[positive]).sum() + w_pos.mean() * l_cls[negative].sum()
    return (classification + (w_pos * l_loc).sum()) / len(labels)


def ours(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, priors: Tensor) -> Tensor:
    """The library."""
    return CRITERION(logits, deltas, labels, targets, priors).total


def step(provider: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """The loss and its gradients for logits and deltas."""
    loss = provider(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, inputs[:2])


def measure(n: int, columns: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of each provider, and the medians of the paired ratios."""
    inputs = make_inputs(n, columns)
    encoded = (*inputs[:3], CODER.encode_single(inputs[3], inputs[4]), inputs[4])
    for got, wanted in zip(step(ours, inputs), step(eager, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    runs: dict[str, list[float]] = {"base": [], "eager": [], "ours": []}
    for _ in range(repetitions):
        for name, provider, arguments in (
            ("base", base, encoded), ("eager", eager, inputs), ("ours", ours, inputs)
        ):  # fmt: skip
            began = time.perf_counter()
            step(provider, arguments)
            runs[name].append(1e3 * (time.perf_counter() - began))
    warm = {name: times[max(1, repetitions // 10) :] for name, times in runs.items()}
    result = {f"{name} ms": statistics.median(times) for name, times in warm.items()}
    pairs = zip(warm["base"], warm["eager"], warm["ours"], strict=True)
    over_base, over_ours = zip(*((o / b, e / o) for b, e, o in pairs), strict=True)
    return result | {
        "ours / base": statistics.median(over_base),
        "eager / ours": statistics.median(over_ours),
    }


def main() -> None:
    """Measure all sizes and print, or write, a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines: list[str] = []
    for n, columns, repetitions in SIZES:
        found = measure(n, columns, repetitions)
        if not lines:
            lines = [f"| N | C | {' | '.join(found)} |", f"|{'---:|' * (len(found) + 2)}"]
        cells = " | ".join(f"{value:.2f}" for value in found.values())
        lines.append(f"| {n:,} | {columns} | {cells} |")
        print(lines[-1], flush=True)
    if options.out:
        about = (
            f"{platform.machine()}, {options.threads} threads, Python "
            f"{platform.python_version()}, torch {torch.__version__}"
        )
        text = (
            f"# The loss on a CPU\n\n`python -m bench.cpu`, {about}. Times are of this machine.\n\n"
        )
        options.out.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
