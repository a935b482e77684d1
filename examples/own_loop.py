"""JOL in a training loop of your own, in plain PyTorch: `python examples/own_loop.py`.

A small network finds one bright square of 10 to 14 pixels in each image of noise.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from jolkernels import JointOptimizationLoss

STRIDE, SIDE = 8, 64
centres = torch.arange(STRIDE / 2, SIDE, STRIDE)
y, x = torch.meshgrid(centres, centres, indexing="ij")
ANCHORS = torch.stack([x - 6, y - 6, x + 6, y + 6], dim=-1).reshape(-1, 4)  # [64, 4], 12 pixels


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Images [size, 1, 64, 64] and the box [size, 4] in each."""
    corner = torch.randint(4, SIDE - 18, (size, 2))
    boxes = torch.cat([corner, corner + torch.randint(10, 15, (size, 2))], dim=1)
    images = 0.1 * torch.randn(size, 1, SIDE, SIDE)
    for image, (x1, y1, x2, y2) in zip(images, boxes.tolist(), strict=True):
        image[:, y1:y2, x1:x2] += 1
    return images, boxes.float()


def main(steps: int = 100) -> list[float]:
    """Train; returns the loss of every step."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(*channels, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(64, 1 + 4, 3, padding=1))  # a logit, four deltas
    criterion = JointOptimizationLoss("focal", "giou", coding="delta")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        images, boxes = make_batch(8)
        output = model(images)  # [8, 5, 8, 8]
        iou = box_iou(boxes, ANCHORS)  # [8, 64]
        positive = (iou >= 0.4) | (iou == iou.amax(1, keepdim=True))
        loss = criterion.dense(
            logits=[output[:, :1]],  # a level
            box_preds=[output[:, 1:]],
            labels=torch.zeros(8, 1, dtype=torch.int64),  # of an image's object: class 0
            target_boxes=boxes[:, None],  # [8, 1, 4]
            priors=ANCHORS,
            matched=torch.where(positive, 0, -1),  # [8, 64]: the object, or the background
            classification_normalizer="positives",
            regression_normalizer="positives",
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses[-1]:.3f}, w- {float(loss.negative_weight):.2f}")
    return losses


if __name__ == "__main__":
    main()
