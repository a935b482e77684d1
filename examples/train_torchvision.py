"""JOL in a stock torchvision Faster R-CNN: `python examples/train_torchvision.py`.

Two lines differ from training without JOL: the import of use_joint_loss, and its call. Weights are
random and the one batch is generated, so nothing is downloaded; replace both with your own.
"""

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from jolkernels.integrations.torchvision import use_joint_loss

ANCHORS = AnchorGenerator(
    sizes=((8,), (16,), (32,), (64,), (128,)),  # the stock anchors begin at 32 pixels
    aspect_ratios=((0.5, 1.0, 2.0),) * 5,
)


def main(steps: int = 10) -> list[float]:
    """Train on one batch; returns the sum of the losses of every step."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,  # two classes and the background
        min_size=128,
        max_size=128,
        rpn_anchor_generator=ANCHORS,
        box_batch_size_per_image=64,  # for a CPU
    )
    use_joint_loss(model, lam=2.0)

    boxes = torch.tensor([[20, 20, 33, 32], [60, 70, 72, 83], [90, 30, 104, 43]])
    labels = torch.tensor([1, 2, 1])  # 0 is the background
    images = 0.2 * torch.rand(2, 3, 128, 128)
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        images[:, label, y1:y2, x1:x2] = 1
    targets = [{"boxes": boxes.float(), "labels": labels} for _ in images]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    totals = []
    for step in range(steps):
        losses = model(list(images), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
        print(f"step {step}: loss {totals[-1]:.3f}, w- {model.roi_heads.negative_weight:.2f}")
    return totals


if __name__ == "__main__":
    main()
