"""VisDrone's txt files: each rule by hand, and the whole data set written in its own format."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.cli import main
from detectors.commands.data_options import report_skipped
from detectors.commands.data_stats import describe
from detectors.data import CocoDetection
from detectors.data.catalog import evaluation_data, read_split
from detectors.data.coco import CocoFile, read_coco
from detectors.data.object_counts import make_pool
from detectors.data.published import Published
from detectors.errors import DataError
from detectors.evaluation import evaluate

BOXES = Path(__file__).parents[3] / "shared/data/visdrone_boxes"
needs_boxes = pytest.mark.skipif(not BOXES.is_dir(), reason="VisDrone's boxes are not here")

# x, y, w, h, score, category, truncation, occlusion
LINES = """\
10,10,20,10,1,4,0,0
40,10,8,8,1,1,0,1,
60,10,8,8,0,4,0,0
0,30,50,30,0,0,0,0,
70,40,8,8,1,11,0,0
70,50,0,8,1,4,0,0

70,50,0,0,0,0,0,0
"""


def picture(width: int, height: int) -> bytes:
    """A file of this size; VisDrone's are JPEG, but what is in a file says its first bytes."""
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def write_split(root: Path, split: str, texts: dict[str, str], size: tuple[int, int]) -> Path:
    folder = root / f"VisDrone2019-DET-{split}"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for stem, text in texts.items():
        (folder / "images" / f"{stem}.jpg").write_bytes(picture(*size))
        (folder / "annotations" / f"{stem}.txt").write_text(text)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_split(tmp_path, split, {"b": LINES, "a": ""}, (100, 80))
    return tmp_path


def test_each_rule(root: Path) -> None:
    split = read_split("visdrone", root, "val")
    assert split.skipped == {"of zero size": 1, "of category others": 1}
    content = split.content
    names = [image["file_name"] for image in content["images"]]
    assert names == [f"VisDrone2019-DET-val/images/{stem}.jpg" for stem in "ab"]
    assert content["images"][1] | {"file_name": ""} == {
        "id": 2, "file_name": "", "width": 100, "height": 80
    }  # fmt: skip
    assert [category["name"] for category in content["categories"]][3] == "car"
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in objects] == [
        (2, 4, [10, 10, 20, 10]),
        (2, 1, [40, 10, 8, 8]),
    ]
    ignored = [a for a in content["annotations"] if a["iscrowd"]]
    assert [(a["category_id"], a["bbox"]) for a in ignored] == [
        (4, [60, 10, 8, 8]),
        *((k, [0, 30, 50, 30]) for k in range(1, 11)),
    ]
    data = evaluation_data("visdrone", root)
    assert data[1][1]["labels"].tolist() == [3, 0] and len(data[0][1]["labels"]) == 0


def test_ignored_regions_cost_nothing(root: Path) -> None:
    """Detections of any class inside one are no false positives; a car on "score 0" neither."""
    truth = evaluation_data("visdrone", root).ground_truth
    right = [
        {"image_id": 2, "category_id": 4, "bbox": [10, 10, 20, 10], "score": 0.5},
        {"image_id": 2, "category_id": 1, "bbox": [40, 10, 8, 8], "score": 0.5},
    ]
    inside = [
        {"image_id": 2, "category_id": k, "bbox": [5 * k, 32, 6, 6], "score": 0.9} for k in (1, 4)
    ]
    counted_not = {"image_id": 2, "category_id": 4, "bbox": [60, 10, 8, 8], "score": 0.9}
    assert evaluate(truth, [*inside, counted_not, *right]).metrics["AP"] == pytest.approx(1)
    outside = {"image_id": 2, "category_id": 4, "bbox": [60, 60, 8, 8], "score": 0.9}
    assert evaluate(truth, [outside, *right]).metrics["AP"] < 0.8
    wrong_class = {**counted_not, "category_id": 1}
    assert evaluate(truth, [wrong_class, *right]).metrics["AP"] < 0.8


def test_convert_writes_files_only(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device given as the file was replaced by a file."""
    os.mkfifo(root / "pipe")
    arguments = ["--dataset", "visdrone", "--data-root", str(root), "--split", "val"]
    for out in (root / "pipe", root):
        assert main(["data", "convert", *arguments, "--out", str(out)]) == 2
        wanted = f"jol data convert: --out: {out}: is a folder or a device, wanted a file\n"
        assert capsys.readouterr().err.startswith(wanted)
    assert (root / "pipe").is_fifo()


def test_convert_and_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "new" / "val.json"
    arguments = ["--dataset", "visdrone", "--data-root", str(root), "--split", "val"]
    assert main(["data", "convert", *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "skipped: 1 of zero size" in printed and "skipped: 1 of category others" in printed
    direct, written = evaluation_data("visdrone", root), CocoDetection(root, out)
    assert written.ground_truth == direct.ground_truth
    assert written.digest == direct.digest == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (written[1][1]["boxes"] == direct[1][1]["boxes"]).all()
    assert read_coco(out, root / "VisDrone2019-DET-val" / "images").files == [
        root / f"VisDrone2019-DET-val/images/{stem}.jpg" for stem in "ab"
    ]


def test_ignored_regions_are_one_thing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A region of ten classes and an object of score 0 are two in every count, and no warning."""
    whole = "2 images, 2 objects, 2 crowd or ignored"
    data = evaluation_data("visdrone", root)
    assert data.counts == whole and data.skipped == [] and data.remarks == []
    assert data[1][1]["ignored"].tolist() == [[0, 30, 50, 60], [60, 10, 68, 18]]
    report_skipped(data)
    assert capsys.readouterr().err == f"{root}/VisDrone2019-DET-val: {whole}\n"
    out = root / "val.json"
    arguments = ["--dataset", "visdrone", "--data-root", str(root), "--split", "val"]
    assert main(["data", "convert", *arguments, "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"\n{whole} in {out}\n")
    assert CocoDetection(root, out).counts == whole
    assert main(["data", "check", *arguments]) == 0
    assert f"{whole}; 0 clipped" in capsys.readouterr().out
    assert main(["data", "stats", *arguments]) == 0
    assert "2 images, 2 objects; skipped: 2 crowd or ignored" in capsys.readouterr().out


def test_hidden_files_are_skipped(root: Path) -> None:
    """macOS copies "._a.jpg" next to each file that it copies to another system."""
    folder = root / "VisDrone2019-DET-val"
    for name in ("images/._a.jpg", "annotations/._a.txt", "annotations/._b.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert len(evaluation_data("visdrone", root)) == 2


def test_a_split_of_which_nothing_is_left_is_a_problem(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = root / "VisDrone2019-DET-val" / "annotations" / "b.txt"
    text.write_text("70,40,8,8,1,11,0,0\n70,50,0,8,1,4,0,0\n0,30,50,30,0,0,0,0\n")
    with pytest.raises(DataError, match=r"val: none of its objects .* 1 of zero size, 1 of cat"):
        evaluation_data("visdrone", root)
    text.write_text("70,40,-8,8,1,4,0,0\n")
    with pytest.raises(DataError, match=r"b\.txt line 1: box 70,40,-8,8 has a negative size"):
        evaluation_data("visdrone", root)
    arguments = [
        "data",
        "check",
        "--dataset",
        "visdrone",
        "--data-root",
        str(root),
        "--split",
        "val",
    ]
    (text.parent / "a.txt").write_text("")
    for lines, news in (("70,40,-8,8,1,4,0,0\n", 0), ("70,40,8,8,1,11,0,0\n", 0), ("", 1)):
        text.write_text(lines)
        assert main(arguments) == (0 if news else 2)
        assert capsys.readouterr().out.count("no objects") == news
    for line in ("9" * 4000 + ",40,8,8,1,4,0,0\n", "9" * 5000, "70,40,8,8,1,4,0,0,\xff"):
        text.write_bytes(line.encode("latin-1"))
        wanted = r"b\.txt( line 1: |: cannot be read: no text in UTF-8)"
        with pytest.raises(DataError, match=wanted) as said:
            evaluation_data("visdrone", root)
        assert len(str(said.value)) < 500


def test_check_names_every_problem_in_one_pass(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "check", "--dataset", "visdrone", "--data-root", str(root)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        f"{root}/VisDrone2019-DET-val: 2 images, 2 objects, 2 crowd or ignored; "
        "0 clipped; skipped: 1 of zero size, 1 of category others"
    )
    folder = root / "VisDrone2019-DET-val"
    text = folder / "annotations" / "b.txt"
    text.write_text("1,2,3\n10,10,20,10,1,4,0,0\n1,2,3,4,1,12,0,0\n1,2,3,4,0.5,1,0,0\n")
    lines = (
        "200,10,20,10,0,0,0,0",
        "0,-30,20,30,1,4,0,0",
        "90,10,20,10,1,4,0,0",
        "-9,0,20,9,0,0,0,0",
    )
    (folder / "annotations" / "c.txt").write_text("\n".join(lines))
    (folder / "images" / "a.png").write_bytes(picture(100, 80))
    noise = np.random.default_rng(0).integers(256, size=(80, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "c.jpg")
    truncated = (folder / "images" / "c.jpg").read_bytes()[:-999]
    (folder / "images" / "c.jpg").write_bytes(truncated)
    (folder / "images" / "d.jpg").write_bytes(picture(100, 80))
    (folder / "annotations" / "e.txt").write_text("")
    (folder / "annotations" / "f.txt").write_bytes(b"\xff\xfe")
    (folder / "images" / "f.jpg").write_text("no picture")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    for wanted in (
        "b.txt line 1: '1,2,3', wanted eight whole numbers",
        "b.txt line 3: '1,2,3,4,1,12,0,0'",
        "b.txt line 4: '1,2,3,4,0.5,1,0,0'",
        "c.txt line 1: box 200,10,20,10 lies outside its image (100x80)",
        "c.txt line 2: box 0,-30,20,30 lies outside its image (100x80)",
        "c.jpg cannot be decoded",
        "a.png: a.jpg has the same a.txt",
        "d.jpg: no d.txt in",
        "e.txt: no image e in",
        "f.jpg: cannot be opened: no kind of image that Pillow knows",
    ):
        assert printed.out.count(wanted) == 1, wanted
    assert "; 2 clipped;" in printed.out  # an object, and a region that is of ten classes
    assert printed.err == "jol data check: 10 problems\n"


def test_files_from_windows(root: Path) -> None:
    text = root / "VisDrone2019-DET-val" / "annotations" / "b.txt"
    lines = read_split("visdrone", root, "val").content["annotations"]
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"\n", b"\r\n"))
    assert read_split("visdrone", root, "val").content["annotations"] == lines != []


def test_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no VisDrone2019-DET-test-dev or test-dev there"):
        read_split("visdrone", root, "test-dev")
    with pytest.raises(DataError, match="no split 'test', wanted one of train, val, test-dev"):
        read_split("visdrone", root, "test")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_split("visdrone", root / "nowhere", "val")
    (root / "VisDrone2019-DET-val" / "annotations" / "b.txt").write_text("1,2,3")
    with pytest.raises(DataError, match=r"b\.txt line 1: '1,2,3', wanted eight"):
        read_split("visdrone", root, "val")


def write_whole(root: Path, split: str) -> None:
    """A split of the real boxes in the publisher's format; 34 lines end with a comma."""
    file = np.load(BOXES / f"{split}.npz")
    folder = root / f"VisDrone2019-DET-{split}"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    lines = [",".join(map(str, row)) for row in file["rows"][:, 1:].tolist()]
    for at in range(0, len(lines), -(-len(lines) // 34)):
        lines[at] += ","
    counts = np.bincount(file["rows"][:, 0], minlength=len(file["wh"]))
    ends = np.cumsum(counts)
    pictures = {size: picture(*size) for size in set(map(tuple, file["wh"].tolist()))}
    for name, size, end, count in zip(file["names"], file["wh"], ends, counts, strict=True):
        text = "\r\n".join(lines[end - count : end]) + "\r\n"
        (folder / "annotations" / f"{name}.txt").write_text(text)
        (folder / "images" / f"{name}.jpg").write_bytes(pictures[tuple(size.tolist())])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the data set, with this split in it."""
    root = tmp_path_factory.mktemp("visdrone")

    @cache
    def write(split: str) -> Path:
        write_whole(root, split)
        return root

    return write


@pytest.fixture(scope="module")
def read_whole(whole: Callable[[str], Path]) -> Callable[[str], tuple[Published, CocoFile]]:
    @cache
    def read(split: str) -> tuple[Published, CocoFile]:
        published = read_split("visdrone", whole(split), split)
        return published, published.check(files=False)

    return read


def row(lines: Sequence[str], *label: str) -> list[str]:
    split = [line.split() for line in lines]
    (found,) = [line[len(label) :] for line in split if line[: len(label)] == list(label)]
    return found


@needs_boxes
@pytest.mark.parametrize(
    ("names", "images", "objects", "zero", "size", "shares"),
    [
        pytest.param(
            *("train", "6,471", 343_205, 1, ("36.44", "33.47"), [5.3, 20.7, 34.5, 39.5]),
            marks=pytest.mark.slow,
        ),
        ("val", "548", 38_759, 0, ("29.85", "24.93"), [6.0, 24.8, 37.7, 31.4]),
        ("test-dev", "1,610", 75_102, 0, ("30.08", None), [13.0, 23.4, 31.3, 32.3]),
        pytest.param(
            *("train val", "7,019", 381_964, 1, ("35.78", "32.76"), None), marks=pytest.mark.slow
        ),
    ],
    ids=["train", "val", "test-dev", "train+val"],
)
def test_the_published_counts(names, images, objects, zero, size, shares, read_whole) -> None:
    """Counts, mean size ± deviation and shares by size, to every digit of the data's facts.

    The box of zero size is among the facts' objects and is skipped, and counted, here.
    """
    used = [read_whole(name) for name in names.split()]
    skipped = sum((Counter(published.skipped) for published, _ in used), Counter())
    pool = make_pool([(published.source, coco) for published, coco in used], skipped)
    lines = list(describe(pool))
    assert lines[0].startswith(f"{images} images, {objects - zero:,} objects; skipped: ")
    assert f"{zero:,} of zero size" in lines[0]
    mean, sign, std = row(lines, "mean")
    assert (mean, sign) == (size[0], "±") and size[1] in (std, None)
    if shares:
        found = row(lines, "share", "of", "the", "objects")
        assert found == [part for share in shares for part in (f"{share:.1f}", "%")]
    if names == "train":  # 8,813 regions, two of zero size
        assert "8,811 crowd or ignored" in lines[0] and "1,532 of category others" in lines[0]
    if names == "train val":  # the paper's Table 1 says 35.8
        assert ["7,019", "381,963", "35.8", "0.0295"] in [line.split() for line in lines]


@needs_boxes
def test_stats_of_a_named_data_set(
    whole: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", "visdrone", "--data-root", str(whole("val")), "--split", "val"]
    assert main(["data", "stats", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("548 images, 38,759 objects; skipped: 1,378 crowd or ignored")
    assert row(lines, "mean") == ["29.85", "±", "24.93"]
    assert any(line.startswith("  m=") for line in lines)


@needs_boxes
def test_the_whole_validation_set_survives_conversion(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "val.json"
    arguments = ["--dataset", "visdrone", "--data-root", str(whole("val")), "--split", "val"]
    assert main(["data", "convert", *arguments, "--out", str(out)]) == 0
    rows = np.load(BOXES / "val.npz")["rows"]
    rows = rows[(rows[:, 6] >= 1) & (rows[:, 6] <= 10)]
    content = json.loads(out.read_text())
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    found = [(a["image_id"] - 1, *map(int, a["bbox"]), a["category_id"]) for a in objects]
    assert sorted(found) == sorted(map(tuple, rows[:, [0, 1, 2, 3, 4, 6]].tolist()))
