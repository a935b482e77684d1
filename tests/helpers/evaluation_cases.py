"""Ground truths and detections for the tests of the evaluation."""

import numpy as np
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


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


# Even coordinates and a few sizes: IoUs fall on the thresholds, areas on the buckets' ends.
sides = st.sampled_from([2, 4, 8, 12, 16, 18, 20, 32, 40, 50, 96])
corner = st.integers(0, 12).map(lambda value: 2.0 * value)
area = st.sampled_from(
    [None, 0, 64, 144, 256, 400, 1024, 2000, 96**2, 64.00001, 63.99999, 1023.5, 1e10, 2e10]
)
which = st.integers(0, 2)
annotations = st.lists(
    st.tuples(which, which, corner, corner, sides, sides, area, st.sampled_from([0, 0, 0, 1])),
    max_size=14,
)
guesses = st.lists(
    st.tuples(
        which, which, corner, corner, sides, sides, st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1])
    ),
    max_size=14,
)
hits = st.lists(  # an object, found with a shift, how often
    st.tuples(st.integers(0, 13), st.sampled_from([0, 0, 1, 2]), st.integers(1, 3)), max_size=10
)
ids = st.sampled_from([(0, 1, 2), (2, 0, 1), (10**12, 7, 3), (5, -4, 2**53 + 1)])


def case(objects, misses, hits, image_ids, category_ids) -> tuple[dict, list[dict]]:
    """A ground truth and detections of what the strategies above draw."""
    ground_truth = {
        "images": [{"id": number, "width": 200, "height": 200} for number in image_ids],
        "categories": [{"id": number, "name": f"class {number}"} for number in category_ids],
        "annotations": [
            {"id": number, "image_id": image_ids[i], "category_id": category_ids[k],
             "bbox": [x, y, w, h], "iscrowd": crowd, **({} if area is None else {"area": area})}
            for number, (i, k, x, y, w, h, area, crowd) in enumerate(objects)
        ],
    }  # fmt: skip
    boxes = list(misses)
    for at, shift, times in hits:
        for i, k, x, y, w, h, *_ in objects[at : at + 1]:
            boxes += [(i, k, x + shift, y, w, h, 0.5)] * times
    detections = [
        {"image_id": image_ids[i], "category_id": category_ids[k], "bbox": [x, y, w, h], "score": s}
        for i, k, x, y, w, h, s in boxes
    ]
    return ground_truth, detections


def official(ground_truth: dict, detections: list[dict]) -> COCOeval:
    """pycocotools' evaluator with its own parameters; its progress goes to stdout."""
    records = [
        {**record, "id": number, "area": record.get("area", record["bbox"][2] * record["bbox"][3])}
        for number, record in enumerate(ground_truth["annotations"], 1)
    ]
    gt, found = COCO(), COCO()
    gt.dataset = {**ground_truth, "annotations": records}
    gt.createIndex()
    found.dataset = {**ground_truth, "annotations": []}
    found.createIndex()
    if detections:
        found = gt.loadRes([dict(record) for record in detections])
    return COCOeval(gt, found, "bbox")
