"""Ground truths and detections for the tests of the evaluation."""

import numpy as np


def truth(boxes: list, images: int = 1, classes: int = 1) -> dict:
    """A ground truth of boxes (image, class, x, y, w, h[, iscrowd]), ids from 0."""
    return {
        "images": [{"id": i, "width": 1000, "height": 1000} for i in range(images)],
        "categories": [{"id": 10 + k, "name": f"class {k}"} for k in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 10 + label,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(any(crowd)),
            }
            for number, (image, label, x, y, w, h, *crowd) in enumerate(boxes)
        ],
    }


def result(image: int, label: int, box: list, score: float) -> dict:
    return {"image_id": image, "category_id": 10 + label, "bbox": box, "score": score}


def perfect(ground_truth: dict) -> list[dict]:
    return [
        {key: record[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for record in ground_truth["annotations"]
        if not record["iscrowd"]
    ]


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Several classes, images without objects, crowds, ties in score, an empty bucket."""
    random = np.random.default_rng(seed)
    images, classes = int(random.integers(1, 7)), int(random.integers(1, 5))
    longest = float(random.choice([14, 30, 90]))
    boxes, detections = [], []
    for _ in range(int(random.integers(0, 60))):
        image, label = int(random.integers(images)), int(random.integers(classes))
        x, y = random.uniform(0, 150, 2).round(int(random.integers(0, 3)))
        w, h = random.uniform(4, longest, 2).round(1)
        boxes.append((image, label, float(x), float(y), float(w), float(h), random.random() < 0.1))
        for _ in range(int(random.integers(0, 3))):
            moved = np.array([x, y, w, h]) + random.normal(0, 0.1 * min(w, h), 4)
            score = float(random.integers(1, 12)) / 12  # many ties
            guess = label if random.random() < 0.8 else int(random.integers(classes))
            detections.append(result(image, guess, np.maximum(moved, 0.5).tolist(), score))
    for _ in range(int(random.integers(0, 30))):
        box = [*random.uniform(0, 150, 2), *random.uniform(4, 40, 2)]
        image, label = int(random.integers(images)), int(random.integers(classes))
        detections.append(result(image, label, [float(v) for v in box], random.random()))
    random.shuffle(detections)
    return truth(boxes, images, classes), detections
