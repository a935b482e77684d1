"""Detection data: COCO files and the paper's data sets, images, training batches.

coco.py           COCO JSON read and checked
exports.py        the habits of annotation tools put into plain COCO; outlines.py: boxes of outlines
coco_checks.py    the rules of categories and images; annotation_checks.py: those of annotations
records.py        records one by one, for the rules
box_sanity.py     whether the boxes together are what they should be
image_names.py    the file of an image by its name in an annotation file
dataset.py        CocoDetection: images, boxes and labels by index
images.py         image files decoded, by the rules of orientation.py and depth.py
batches.py        training batches: crops, mirroring, loading processes
catalog.py        the paper's data sets by name: where their files are, and the paper's schedule
published.py      what a reader returns; AI-TOD, AI-TODv2 and COCO, which come as COCO JSON
visdrone.py       VisDrone-DET's folders of txt files
sodad.py          SODA-D: its regions to ignore, its tiles written and read
tiles.py          the geometry of tiles, and the merging of what was detected on them
object_sizes.py   square roots of areas, and the limits 8, 16 and 32
object_counts.py  objects counted by class and size
synthetic.py      generated scenes of tiny objects
"""

from detectors.errors import DataError as DataError
from detectors.utils.lazy import names_of

__getattr__, __all__ = names_of(
    __name__,
    {"batches": "Batch train_batches", "dataset": "CocoDetection"},
)
