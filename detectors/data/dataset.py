"""Images and boxes of a COCO-format annotation file, by index.

Everything a file can get wrong is found when `CocoDetection` is built, except what only the
pixels can tell; it is reported as a `DataError` that names the file and the annotation or image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detectors.data.coco import CocoFile, check_coco, read_coco
from detectors.data.images import decode, is_black

Target = dict[str, Any]
"""What an image shows.

"boxes" float32 [n, 4], "labels" int64 [n], "ignored" float32 [k, 4], "image_id" int.
"""
Sample = tuple[Tensor, Target]
Detection = dict[str, Any]  # COCO result: image_id, category_id, bbox [x, y, w, h], score


class CocoDetection(Dataset[Sample]):
    """Images and boxes of a COCO-format annotation file.

    The annotation file is read and checked in full here; an image is decoded by `dataset[i]`,
    which gives `(image, target)`: image uint8 [3, H, W]; target with "boxes" float32 [n, 4]
    (x1 y1 x2 y2, pixels), "labels" int64 [n] (0-based), "ignored" float32 [k, 4] and "image_id"
    (int).

    Image files are found by the rule of `find_image`.
    Boxes marked `iscrowd` or `ignore` are no targets but "ignored", a region of several classes
    once; in `ground_truth` they carry `iscrowd` 1, so that evaluation counts them neither as missed
    nor, when detected, as wrong.

    Attributes:
        class_names: label → name; labels follow the category ids in ascending order.
        category_ids: label → COCO category id.
        image_ids: index → COCO image id, in the order of the file.
        file_names: index → the image's file_name in the annotations.
        image_sizes: index → width and height in pixels.
        ground_truth: COCO dict (images, annotations, categories) with the boxes as used.
        skipped: a line for each box that was skipped or clipped.
        remarks: in words, what had to be done to read the file, and what is odd about it.
        counts: in words, the images, objects, and crowds and regions to ignore.
        objects: how many objects there are, without those to ignore.
        ignored: how many crowds and regions to ignore; one of several classes counts once.
        black: ids of the images that came out black, of those read so far.
        source: what messages call the annotations, the file's path.
        digest: sha256, hexadecimal, of the annotation file; of a COCO dict: of the file that
            `jol data convert` writes of it.

    Raises:
        DataError: unusable files, ids, categories, boxes or images.
    """

    def __init__(
        self, images: Path, annotations: Path | dict[str, Any], name: str = "annotations"
    ) -> None:
        """Read and check `annotations`, whose images lie in the folder `images`.

        `annotations` may be a COCO dict, which messages then call `name`.
        """
        coco: CocoFile
        if isinstance(annotations, dict):
            self.source = name
            coco = check_coco(annotations, name, Path(images))
        else:
            self.source = str(annotations)
            coco = read_coco(Path(annotations), Path(images))
        self.category_ids: list[int] = [category["id"] for category in coco.categories]
        self.class_names: list[str] = [category["name"] for category in coco.categories]
        self.image_ids: list[int] = [image["id"] for image in coco.images]
        self.file_names: list[str] = [image["file_name"] for image in coco.images]
        self.image_sizes: list[tuple[int, int]] = [(i["width"], i["height"]) for i in coco.images]
        self.ground_truth: dict[str, Any] = coco.content()
        self.skipped: list[str] = coco.checked.skipped
        self.remarks: list[str] = coco.remarks
        self.counts, self.objects, self.ignored = coco.counts, coco.objects, coco.ignored
        self.digest: str = coco.digest
        self.black: set[int] = set()
        self._images, self._files = coco.images, coco.files
        self._targets, self._ignored = (
            _boxes(
                [record for record in coco.annotations if record["iscrowd"] == crowd],
                self.image_ids,
                self.category_ids,
            )
            for crowd in (0, 1)
        )

    def __len__(self) -> int:
        """Number of images, those without objects included."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Decode image `index`; raises DataError if it cannot be, or has another size."""
        record = self._images[index]
        where = f"{self.source}: image {record['id']}"
        image = decode(self._files[index], (record["width"], record["height"]), where)
        if is_black(image):
            self.black.add(record["id"])
        boxes, labels = self._targets[index]
        regions = self._ignored[index][0]
        ignored = regions.unique(dim=0) if len(regions) else regions.clone()
        target = {"boxes": boxes.clone(), "labels": labels.clone(), "ignored": ignored}
        return image, {**target, "image_id": record["id"]}

    def annotated(self, index: int) -> dict[str, Tensor]:
        """What image `index` shows, without decoding it.

        "boxes" float32 [n, 4] and "labels" int64 [n] as in `dataset[index]`; "ignored" float32
        [k, 4] and "ignored_labels" int64 [k], where a detection is neither right nor wrong.
        """
        boxes, labels = self._targets[index]
        ignored, ignored_labels = self._ignored[index]
        return {
            "boxes": boxes.clone(),
            "labels": labels.clone(),
            "ignored": ignored.clone(),
            "ignored_labels": ignored_labels.clone(),
        }

    def take_classes(self, names: Sequence[str], ids: Sequence[int]) -> None:
        """Use these classes with these COCO category ids, instead of the file's own.

        Args:
            names: label → name, with at least those of this data set's classes that have
                annotations.
            ids: label → COCO category id, ascending.
        """
        number = {name: label for label, name in enumerate(names)}
        labels = torch.tensor([number.get(name, 0) for name in self.class_names])
        new_id = {
            old: ids[number[name]]
            for old, name in zip(self.category_ids, self.class_names, strict=True)
            if name in number
        }
        self._targets, self._ignored = (
            [(boxes, labels[old]) for boxes, old in each] for each in (self._targets, self._ignored)
        )
        annotations = [
            {**record, "category_id": new_id[record["category_id"]]}
            for record in self.ground_truth["annotations"]
        ]
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        self.ground_truth |= {"annotations": annotations, "categories": categories}
        self.class_names, self.category_ids = list(names), list(ids)

    def assemble(self, detections: list[Detection]) -> list[Detection]:
        """Detections on the images of this data set as detections for `ground_truth`: the same."""
        return detections


def _boxes(
    annotations: list[dict[str, Any]], image_ids: list[int], category_ids: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """For each image, boxes float32 [n, 4] (x1 y1 x2 y2) and labels int64 [n]."""
    label = {category: index for index, category in enumerate(category_ids)}
    boxes: dict[int, list[list[float]]] = {image_id: [] for image_id in image_ids}
    labels: dict[int, list[int]] = {image_id: [] for image_id in image_ids}
    for record in annotations:
        x, y, w, h = record["bbox"]
        boxes[record["image_id"]].append([x, y, x + w, y + h])
        labels[record["image_id"]].append(label[record["category_id"]])
    return [
        (
            torch.tensor(boxes[image_id], dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels[image_id], dtype=torch.int64),
        )
        for image_id in image_ids
    ]
