"""The numbers of the paper's Tables 1 to 9, as published.

Shi, Fang, Xu, "Joint Optimization Loss Function for Tiny Object Detection in Remote Sensing
Images", Remote Sens. 2025, 17, 1476, doi 10.3390/rs17081476. AP is the mean over IoU .5:.95 in per
cent. Rows with a reference are cited: the paper takes them from that entry of its bibliography
(section 4.3), so they are not runs of its authors. Numbers stand as printed, also where one looks
like a slip (AP75 1.4 of DetectoRS in Table 3). table_plan.py says which of our runs belong to
which row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

DOI = "10.3390/rs17081476"


@dataclass(frozen=True)
class DataSet:
    """A row of Table 1, and the splits that the other tables train and test on.

    Attributes:
        image_size: pixels a side.
        size: mean absolute size of the objects, sqrt(w h) in pixels.
        relative: size / image_size.
    """

    name: str
    trained: str
    tested: str
    categories: int
    images: int
    objects: int
    image_size: int
    size: float
    relative: float


DATA_SETS = {
    "visdrone": DataSet("VisDrone2019", "train", "val", 10, 10_209, 343_205, 1000, 35.8, 0.036),
    "aitod": DataSet("AI-TOD", "trainval", "test", 8, 28_036, 700_621, 800, 12.8, 0.016),
    "aitodv2": DataSet("AI-TODv2", "trainval", "test", 8, 28_036, 752_745, 800, 12.7, 0.016),
    "sodad": DataSet("SODA-D", "train", "test", 9, 24_828, 278_433, 2901, 20.3, 0.007),
    "coco": DataSet(
        "MS COCO 2017", "trainval35k", "minival", 80, 118_000, 860_000, 800, 150, 0.188
    ),
}
"""Table 1, by our names."""


class Row(NamedTuple):
    """A method's row of Tables 2 to 6.

    Attributes:
        group: the paper's heading above it.
        reference: the entry of the paper's bibliography that is cited; None: the paper's own.
        publication: where that appeared.
        numbers: metric to value, without those that the paper does not give.
        gain: the superscript of AP: over the same method without JOL, but for DetectoRS in Table 5
            over DetectoRS with SimD.
    """

    group: str
    method: str
    reference: int | None
    publication: str | None
    backbone: str | None
    numbers: Mapping[str, float]
    gain: float | None


def _rows(text: str) -> tuple[Row, ...]:
    """The rows of a table below; a line without "|" is the heading of the lines after it."""
    header, *lines = text.strip().splitlines()
    *labels, columns = (cell.strip() for cell in header.split("|"))
    group, rows = "", []
    for line in lines:
        if "|" not in line:
            group = line
            continue
        *words, values = (cell.strip() for cell in line.split("|"))
        said = {name: word for name, word in zip(labels, words, strict=True) if word != "-"}
        pairs = zip(columns.split(), values.split(), strict=False)  # gain: the last, or not there
        numbers = {name: float(value) for name, value in pairs if value != "-"}
        rows.append(
            Row(
                group,
                said["method"],
                int(said["ref"]) if "ref" in said else None,
                said.get("publication"),
                said.get("backbone"),
                gain=numbers.pop("gain", None),
                numbers=numbers,
            )
        )
    return tuple(rows)


_VISDRONE = """
method                  | ref |   AP AP50 AP_vt AP_t gain
baseline
RetinaNet               |  30 |  7.9 15.9   0.1  0.7
FCOS                    |  33 | 14.1 25.5   0.1  2.1
Faster R-CNN            |  24 | 22.3 38.0   0.1  6.2
Cascade R-CNN           |  66 | 22.5 38.5   0.5  6.8
DetectoRS               |  67 | 25.7 41.7   0.5  7.6
DetectoRS w/ SimD       |  40 | 28.7 50.3   7.6 17.3
ours
RetinaNet w/ JOL        |   - | 14.2 26.6   0.8  3.4  6.3
FCOS w/ JOL             |   - | 19.9 37.9   5.9 12.0  5.8
Faster R-CNN w/ JOL     |   - | 26.9 49.7   8.1 16.6  4.6
Cascade R-CNN w/ JOL    |   - | 27.8 49.0   8.5 16.8  5.3
DetectoRS w/ JOL        |   - | 29.3 51.6   8.4 17.9  3.6
DetectoRS w/ SimD + JOL |   - | 29.8 52.5   8.6 18.8  1.1
"""
_AITOD = """
method                  | ref | publication  | backbone  |   AP AP50 AP75 AP_vt AP_t AP_s AP_m gain
two-stage anchor-based
Faster R-CNN            |  24 | TPAMI 2017   | ResNet-50 | 11.1 26.3  7.6   0.0  7.2 23.3 33.6
Cascade RPN             |  68 | NeurIPS 2019 | ResNet-50 | 13.3 33.5  7.8   3.9 12.9 18.1 26.3
Cascade R-CNN           |  66 | CVPR 2018    | ResNet-50 | 13.8 30.8 10.5   0.0 10.6 25.5 36.6
DetectoRS               |  67 | CVPR 2021    | ResNet-50 | 14.8 32.8  1.4   0.0 10.8 18.3 38.0
one-stage anchor-based
SSD-512                 |  31 | ECCV 2016    | ResNet-50 |  7.0 21.7  2.8   1.0  4.7 11.5 13.5
RetinaNet               |  30 | ICCV 2017    | ResNet-50 |  8.7 22.3  4.8   2.4  8.9 12.2 16.0
ATSS                    |  69 | CVPR 2020    | ResNet-50 | 12.8 30.6  8.5   1.9 11.6 19.5 29.2
anchor-free
OTA                     |  70 | CVPR 2021    | ResNet-50 | 10.4 24.3  7.2   2.5 11.9 15.7 20.9
FCOS                    |  33 | ICCV 2019    | ResNet-50 | 12.6 30.4  8.1   2.3 12.2 17.2 25.0
M-CenterNet             |  59 | ICPR 2021    | DLA-34    | 14.5 40.7  6.4   6.1 15.0 19.4 20.4
state-of-the-art method
DetectoRS w/ RFLA       |  22 | ECCV 2022    | ResNet-50 | 24.8 55.2 18.5   9.3 24.8 30.3 38.2
HANet                   |  17 | TCSVT 2024   | ResNet-50 | 22.1 53.7 14.4  10.9 22.2 27.3 36.8
TTFNet w/ GA            |  16 | TGRS 2024    | MiT-B1    | 24.2 53.9 19.4  10.4 25.2 24.5 34.1
KLDet                   |  15 | TGRS 2024    | ResNet-50 | 25.2    -    -     -    -    -    -
DetectoRS w/ SimD       |  40 | IROS 2024    | ResNet-50 | 26.6 55.9 21.2  13.4 27.5 30.9 37.8
ours
RetinaNet w/ JOL        |   - | -            | ResNet-50 | 15.1 36.9  9.7   5.2 14.3 20.3 29.7  6.4
FCOS w/ JOL             |   - | -            | ResNet-50 | 17.8 41.1 13.6   8.4 18.2 21.3 29.1  5.2
Faster R-CNN w/ JOL     |   - | -            | ResNet-50 | 24.7 56.7 18.1  13.4 25.1 26.9 36.5 13.6
Cascade R-CNN w/ JOL    |   - | -            | ResNet-50 | 25.5 56.2 20.2  13.3 26.3 27.7 37.8 11.7
DetectoRS w/ JOL        |   - | -            | ResNet-50 | 27.2 57.4 22.1  13.9 27.8 30.7 40.1 12.4
DetectoRS w/ SimD + JOL |   - | -            | ResNet-50 | 28.3 58.2 23.9  13.6 28.7 32.5 39.3  1.7
"""
_AITODV2 = """
method                  | ref | publication  | backbone  |   AP AP50 AP75 AP_vt AP_t AP_s AP_m gain
two-stage anchor-based
Faster R-CNN            |  24 | TPAMI 2017   | ResNet-50 | 12.8 29.9  9.4   0.0  9.2 24.6 37.0
Cascade R-CNN           |  66 | NeurIPS 2019 | ResNet-50 | 15.1 34.2 11.2   0.1 11.5 26.7 38.5
DetectoRS               |  67 | CVPR 2021    | ResNet-50 | 16.1 35.5 12.5   0.1 12.6 28.3 40.0
one-stage anchor-based
YOLOv3                  |  32 | ArXiv 2018   | DarkNet   |  4.1 14.6  0.9   1.1  4.8  7.7  8.0
RetinaNet               |  30 | ICCV 2017    | ResNet-50 |  8.9 24.2  4.6   2.7  8.4 13.1 20.4
SSD-512                 |  31 | ECCV 2016    | VGG-16    | 10.7 32.5  4.0   2.0  8.7 16.8 28.0
anchor-free
FCOS                    |  33 | ICCV 2019    | ResNet-50 | 12.0 30.2  7.3   2.2 11.1 16.6 26.9
Grid R-CNN              |  71 | CVPR 2019    | ResNet-50 | 14.3 31.1 11.0   0.1 11.0 25.7 36.7
state-of-the-art method
ESG_TODNet              |  19 | GRSL 2024    | ResNet-50 | 24.6 55.1 18.1   9.5 24.0 29.4 35.6
ORFENet                 |  18 | TGRS 2024    | ResNet-50 | 24.8 55.4 18.2   9.7 24.4 28.7 35.1
DetectoRS w/ SimD       |  40 | IROS 2024    | ResNet-50 | 26.5 57.7 20.5  11.6 26.7 30.9 38.4
ours
RetinaNet w/ JOL        |   - | -            | ResNet-50 | 16.2 40.0 10.2   5.6 14.3 21.8 33.3  7.3
FCOS w/ JOL             |   - | -            | ResNet-50 | 18.6 42.3 13.2   8.2 17.5 22.5 31.4  6.6
Faster R-CNN w/ JOL     |   - | -            | ResNet-50 | 25.0 58.4 17.6  13.6 25.1 27.8 38.9 12.2
Cascade R-CNN w/ JOL    |   - | -            | ResNet-50 | 25.4 56.3 19.2  11.9 25.4 29.1 39.4 10.3
DetectoRS w/ JOL        |   - | -            | ResNet-50 | 26.8 58.0 21.2  13.2 26.9 30.6 40.5 10.7
DetectoRS w/ SimD + JOL |   - | -            | ResNet-50 | 28.0 59.6 21.8  13.9 27.8 31.7 40.8  1.5
"""
_SODAD = """
method                  | ref |   AP AP50 AP75 gain
baseline
Faster R-CNN            |  24 | 28.9 59.7 24.2
Cascade R-CNN           |  66 | 31.2 59.9 27.8
RetinaNet               |  30 | 28.2 57.6 23.7
CornerNet               |  72 | 24.6 49.5 21.7
FCOS                    |  33 | 23.9 49.5 19.9
RepPoints               |  73 | 28.0 55.6 24.7
YOLOX                   |  34 | 26.7 53.4 23.0
DetectoRS w/ SimD       |  40 | 32.8 59.4 31.3
ours
RetinaNet w/ JOL        |   - | 28.3 53.8 25.7  0.1
FCOS w/ JOL             |   - | 27.3 53.3 24.5  3.4
Faster R-CNN w/ JOL     |   - | 31.3 60.0 28.4  2.4
Cascade R-CNN w/ JOL    |   - | 32.8 59.8 31.2  1.6
DetectoRS w/ JOL        |   - | 33.4 60.1 31.5  0.6
DetectoRS w/ SimD + JOL |   - | 34.3 60.4 31.9  1.5
"""
_COCO = """
method              |   AP AP50 AP_s AP_m AP_l
baseline
Faster R-CNN        | 36.5 56.8 21.0 39.8 46.8
ours
Faster R-CNN w/ JOL | 37.6 58.1 21.5 41.2 48.6
"""
COMPARISONS: dict[int, tuple[str, tuple[Row, ...]]] = {
    2: ("visdrone", _rows(_VISDRONE)),
    3: ("aitod", _rows(_AITOD)),
    4: ("aitodv2", _rows(_AITODV2)),
    5: ("sodad", _rows(_SODAD)),
    6: ("coco", _rows(_COCO)),
}
"""Tables 2 to 6: data set and rows. Table 6 is of Faster R-CNN with ResNet-50."""

SCORES = {
    (False, False): {"AP": 11.1, "AP50": 26.3, "AP75": 7.6},
    (True, False): {"AP": 23.4, "AP50": 52.4, "AP75": 17.9},
    (False, True): {"AP": 23.2, "AP50": 51.9, "AP75": 17.6},
    (True, True): {"AP": 24.7, "AP50": 56.7, "AP75": 18.1},
}
"""Table 7, Faster R-CNN on AI-TOD: whether S_loc and S_cls are used."""
LAMBDAS = {1: 21.7, 2: 24.7, 3: 24.7, 4: 24.6, 5: 24.7}
"""Table 8, Faster R-CNN on AI-TOD: λ to AP."""


@dataclass(frozen=True)
class Cost:
    """Rows of Table 9 of a detector; base and JOL differ in their seconds alone.

    Attributes:
        gflops: billions of multiply-accumulates of an image of 800 x 800, as MMDetection counts.
        parameters: millions (the paper heads them MB).
        megabytes: of the saved model, which is weights and momentum: 8 bytes a parameter.
        base_seconds: of a training step, batch 2, one RTX A6000.
        jol_seconds: the same with JOL.
    """

    gflops: float
    parameters: float
    megabytes: float
    base_seconds: float
    jol_seconds: float


COSTS = {
    "retinanet": Cost(129.8, 36.5, 292.0, 0.12, 0.13),
    "fcos": Cost(123.3, 32.1, 257.5, 0.12, 0.13),
    "faster_rcnn": Cost(134.5, 41.4, 331.7, 0.11, 0.12),
}
"""Table 9, by our names; its AP are those of Table 3."""
