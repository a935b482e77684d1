"""Boxes of annotations that have an outline, or nothing, in place of one."""

import pytest

from detectors.data import DataError
from detectors.data.coco import check_coco
from detectors.data.outlines import outline_box


@pytest.mark.parametrize(
    "outline, box",
    [
        ([[1, 2, 5, 2, 5, 9]], [1, 2, 4, 7]),
        ([[1, 2, 5, 2, 5, 9], [0, 3, 2, 3, 1, 12.5]], [0, 2, 5, 10.5]),
        ([1, 2, 5, 2, 5, 9], [1, 2, 4, 7]),
        # column after column of 4 rows: the mask holds rows 1 and 2 of columns 1 and 2
        ({"size": [4, 5], "counts": [5, 2, 2, 2, 9]}, [1, 1, 2, 2]),
        ({"size": [4, 5], "counts": [5, 2, 2, 2, 10]}, None),
        ({"size": [0, 5], "counts": []}, None),
        ({"size": [4, 5], "counts": [-5, 25]}, None),
        ({"size": [4, 5], "counts": [20]}, None),
        ({"size": [4, 5], "counts": "R"}, None),
        ({"size": [4, 5], "counts": "\x00"}, None),
        ({"size": [4, 5], "counts": 3}, None),
        ({"size": "4", "counts": "5"}, None),
        ([[1, 2, 5, 2]], None),
        ([[1, 2, 5, 2, 5]], None),
        ([[1, 2, 5, 2, 5, "9"]], None),
        ([[1, 2, 5, 2, 5, float("nan")]], None),
        ([[1, 2, 5, 2, 5, 10**400]], None),
        ([[]], None),
        ([], None),
        (None, None),
        ("text", None),
    ],
)
def test_boxes_around_outlines(outline, box):
    assert outline_box(outline) == box


def test_a_compressed_mask_has_the_box_of_its_numbers():
    from pycocotools import mask

    encoded = mask.frPyObjects({"size": [40, 50], "counts": [85, 20, 20, 20, 1855]}, 40, 50)
    text = encoded["counts"].decode()
    assert outline_box({"size": [40, 50], "counts": text}) == [2, 5, 2, 20]


@pytest.mark.parametrize("box", [{}, {"bbox": None}])
@pytest.mark.parametrize(
    "outline, wanted",
    [
        ({}, "no bbox, and no segmentation to take it from; wanted"),
        ({"segmentation": []}, "no bbox, and no segmentation to take it from; wanted"),
        ({"segmentation": None}, "no bbox, and no segmentation to take it from; wanted"),
        (
            {"segmentation": [[1, 2, 5, 9]]},
            r"no bbox, and segmentation is \[\[1, 2, 5, 9\]\], wanted",
        ),
        ({"segmentation": "x" * 5000}, "no bbox, and segmentation is 'xxx.*xxx', wanted a polygon"),
    ],
)
def test_a_box_that_is_nowhere_is_refused_with_the_remedy(box, outline, wanted):
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, **box, **outline}],
        "categories": [{"id": 1, "name": "bus"}],
    }
    with pytest.raises(DataError, match=rf"annotation 0: {wanted}") as said:
        check_coco(content, "a.json", None)
    assert len(str(said.value)) < 250
