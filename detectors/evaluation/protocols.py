"""The benchmarks' rules of evaluation by name, and the libraries that apply them.

Nothing here imports numpy or torch: the command line lists these names.
"""

from dataclasses import dataclass

from detectors.data.object_sizes import SMALL, TINY, VERY_TINY


@dataclass(frozen=True)
class Protocol:
    """A benchmark's rules: area ranges (pixels², both ends belong) and detections an image.

    Attributes:
        areas: size bucket → its range; AP in it is called AP_ and its name.
        max_dets: detections of a class and image that AP is taken at.
        whole: the range of all other numbers; objects outside are neither missed nor, when
            detected, wrong.
    """

    areas: dict[str, tuple[float, float]]
    max_dets: int
    whole: tuple[float, float] = (0, 1e10)


EVALUATORS = ("faster", "pycocotools")
PROTOCOLS = {
    # Wang et al., "Tiny Object Detection in Aerial Images", ICPR 2020, and their cocoapi-aitod
    "aitod": Protocol(
        {
            "vt": (0, VERY_TINY**2),
            "t": (VERY_TINY**2, TINY**2),
            "s": (TINY**2, SMALL**2),
            "m": (SMALL**2, 1e10),
        },
        max_dets=1500,
    ),
    "coco": Protocol({"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}, max_dets=100),
    # Cheng et al., "Towards Large-Scale Small Object Detection", TPAMI 2023: extremely,
    # relatively and generally small, and normal, which AP leaves out
    "sodad": Protocol(
        {"eS": (0, 144), "rS": (144, 400), "gS": (400, 1024), "N": (1024, 2000)},
        max_dets=100,
        whole=(0, 1024),
    ),
}
METRICS: tuple[str, ...] = ("AP", "AP50", "AP75", "AP_vt", "AP_t", "AP_s", "AP_m")
