"""The paper's figures: the numbers in them, and the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from detectors.cli import main
from detectors.commands.demo import DemoSize, demo_settings
from detectors.data import CocoDetection
from detectors.data.synthetic import write_scenes
from detectors.models import build_detector
from detectors.paper import figures, loss_samples, side_by_side
from detectors.paper.loss_samples import Samples
from detectors.training import checkpoints, loop, run_folder
from detectors.utils.palette import GREEN, ORANGE

SIZE = DemoSize(crop=64, steps=2, batch_size=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, and a base and a JOL run on them."""
    folder = tmp_path_factory.mktemp("runs")
    scenes = write_scenes(folder / "scenes", images=3, seed=0, size=96)
    data = CocoDetection(*scenes)
    for loss in ("base", "jol"):
        settings = demo_settings(loss, 0, SIZE)
        (folder / loss).mkdir()
        model = loop.make_model(settings, len(data.class_names))
        loop.train(settings, model, data, data, folder / loss)
    (folder / "paths.json").write_text(json.dumps([str(path) for path in scenes]))
    return folder


def given(runs: Path) -> list[str]:
    images, annotations = json.loads((runs / "paths.json").read_text())
    return ["--val-images", images, "--val-annotations", annotations, "--device", "cpu"]


def test_surfaces_by_hand() -> None:
    iou, p = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 1.0])
    base = figures.surface(iou, p, None)
    assert base.tolist() == pytest.approx([0, 0.5 + np.log(2), 1])
    joint = figures.surface(iou, p, 2.0)
    assert joint.tolist() == pytest.approx([0, 1.75 * (0.5 + np.log(2)), 2])


def some_samples() -> Samples:
    """Six samples of three objects of four; the last sample's proposal is the object itself."""
    return Samples(
        object=torch.tensor([0, 0, 2, 3, 3, 3]),
        size=torch.tensor([8.0, 8, 20, 64, 64, 64]),
        s_loc=torch.tensor([0.9, 0.2, 0.7, 0.3, 0.8, 1.0]),
        s_cls=torch.tensor([0.1, 0.6, 0.8, 0.2, 0.4, 0.0]),
        loss=torch.tensor([1.0, 2, 3, 4, 4, 6]),
        own=torch.tensor([False] * 5 + [True]),
        objects=torch.tensor([8.0, 16, 20, 64]),
    )


def test_shares_of_objects_by_hand() -> None:
    """An object without samples has no loss; samples of the object's own box count."""
    assert figures.object_shares(some_samples()).tolist() == pytest.approx([15, 0, 15, 70])


def test_trend_by_hand() -> None:
    """A straight line over the logarithm; that of least squares through four points."""
    sizes, at = torch.tensor([8.0, 16, 32, 64]), torch.tensor([8.0, 128])
    assert figures.trend(sizes, torch.tensor([1.0, 3, 5, 7]), at).tolist() == pytest.approx([1, 9])
    values = torch.tensor([4.0, 0, 1, 3])
    line = np.polyfit(sizes.log().numpy(), values.numpy(), 1)
    assert figures.trend(sizes, values, at).tolist() == pytest.approx(
        np.polyval(line, at.log().numpy()), abs=1e-6
    )
    assert figures.trend(torch.ones(3), torch.ones(3), at).isnan().all()


def test_figure_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point an object and a trend line; samples in colour where their scores disagree."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    s = some_samples()
    figures.loss_by_size({"base": s, "jol": s._replace(s_cls=s.s_loc)}, tmp_path / "x.png")
    base, jol = np.reshape(np.array(drawn[0].axes), (2, 4))
    assert "base" in base[0].get_title() and "JOL" in jol[0].get_title()
    (objects,) = base[0].collections
    assert objects.get_offsets().tolist() == [[8, 15], [16, 0], [20, 15], [64, 70]]
    (line,) = base[0].get_lines()
    assert list(line.get_xdata()) == [8, 64] and line.get_ydata()[0] < line.get_ydata()[1]

    def points(axes: Axes) -> dict[str, list[tuple[float, float]]]:
        found = {}
        for dots in axes.collections:
            colour = to_hex(dots.get_facecolor()[0]).upper()
            found[colour] = [(round(x, 3), round(y, 3)) for x, y in dots.get_offsets().tolist()]
        return found

    assert points(base[1]) == {figures.GREY: [], ORANGE: [(0.9, 0.1)], GREEN: [(0.2, 0.6)]}
    assert points(base[2]) == {figures.GREY: [(0.7, 0.8)], ORANGE: [], GREEN: []}
    assert points(base[3]) == {figures.GREY: [(0.3, 0.2)], ORANGE: [(0.8, 0.4)], GREEN: []}
    assert not any(points(axes)[colour] for axes in jol[1:] for colour in (ORANGE, GREEN))
    assert {"50 %", "0 %"} == {text.get_text() for text in base[1].texts}


def test_owners_of_samples() -> None:
    """By the same box; of two objects with one box, one has all the samples."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 9, 9], [0, 0, 4, 5]])
    assert loss_samples.owners(boxes[[2, 0, 0, 1]], boxes).tolist() == [2, 0, 0, 1]
    assert len(loss_samples.owners(boxes[:0], boxes)) == 0
    twice = loss_samples.owners(boxes[[0, 0]], boxes[[0, 0, 1]])
    assert twice[0] == twice[1] and twice[0] in (0, 1)
    with pytest.raises(ValueError, match="none of the image's objects"):
        loss_samples.owners(boxes[:1] + 1, boxes)


def test_correlation() -> None:
    a = torch.tensor([0.1, 0.4, 0.3, 0.9])
    assert figures.correlation(a, 1 - 2 * a) == pytest.approx(-1)
    b = torch.tensor([0.2, 0.1, 0.5, 0.3])
    assert figures.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert np.isnan(figures.correlation(a, torch.ones(4)))


def test_samples_are_the_losses_terms(runs: Path) -> None:
    """The positives' loss is what the head's regression and positive classification add up to."""
    data = CocoDetection(*map(Path, json.loads((runs / "paths.json").read_text())))
    for loss in ("base", "jol"):
        model = checkpoints.load_detector(checkpoints.load(runs / loss / "best.pt"))
        criterion = model.roi_heads.criterion
        seen = []
        hook = criterion.register_forward_hook(
            lambda _m, a, k, out, seen=seen: seen.append((a, k, out)), with_kwargs=True
        )
        found = loss_samples.collect(model, data, "cpu", images=2)
        hook.remove()
        positives = sum(int(out.num_positives) for _, _, out in seen)
        assert len(seen) == 2 and len(found.loss) == positives == len(found.size) > 0
        counts = [len(data[i][1]["boxes"]) for i in range(2)]
        assert len(found.objects) == sum(counts)
        if loss == "base":
            total = 0.0
            for a, k, _ in seen:
                rows = criterion.per_sample(*a, **k)
                total += float((rows.classification + rows.regression)[a[2] != 0].sum())
            assert float(found.loss.sum()) == pytest.approx(total, rel=1e-5)
        else:
            assert float(found.loss.sum()) > 0
        assert ((found.s_loc >= 0) & (found.s_loc <= 1) & (found.s_cls > 0)).all()
        # torchvision puts the objects among the proposals; not one is lost or found twice
        assert int(found.own.sum()) == len(found.objects) < len(found.own)
        assert (found.objects[found.object] == found.size).all()
        own = found.object[found.own]  # one of every object, in each of the images
        assert sorted(own.tolist()) == list(range(len(found.objects)))
        assert not criterion._forward_hooks


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_samples_of_heads_that_hand_their_levels_over(runs: Path, name: str) -> None:
    data = CocoDetection(*map(Path, json.loads((runs / "paths.json").read_text())))
    model = build_detector(name, len(data.class_names), preset="slim")
    found = loss_samples.collect(model, data, "cpu", images=2)
    assert len(found.loss) > 0 and found.loss.isfinite().all() and not found.own.any()
    assert model.head.dense


def test_the_most_crowded_images_come_first(runs: Path) -> None:
    data = CocoDetection(*map(Path, json.loads((runs / "paths.json").read_text())))
    order = side_by_side.crowded(data, 2)
    counts = [len(data[i][1]["boxes"]) for i in range(3)]
    assert [counts[i] for i in order] == sorted(counts, reverse=True)[:2]


@pytest.mark.parametrize("number", [1, 3, 4, 6, 7])
def test_figures_are_drawn(
    number: int, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure.png"
    words = ["figure", str(number), "--out", str(out)]
    if number != 3:
        words += ["--jol", str(runs / "jol")]
    if number not in (3, 7):
        words += ["--base", str(runs / "base")]
    if number in (1, 4, 7):
        words += [*given(runs), "--images", "2"]
    assert main(words) == 0
    assert str(out) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    assert out.stat().st_size > 5000


def test_unusable_arguments(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "f.png")]
    both = ["--base", str(runs / "base"), "--jol", str(runs / "ships")]
    shutil.copytree(runs / "jol", runs / "ships", dirs_exist_ok=True)
    table = (runs / "ships" / "per_class.csv").read_text()
    (runs / "ships" / "per_class.csv").write_text(table.replace("\ncar,", "\nlorry,"))
    images, annotations = json.loads((runs / "paths.json").read_text())
    content = json.loads(Path(annotations).read_text())
    (runs / "none.json").write_text(json.dumps({**content, "annotations": []}))
    told = []
    for loss, digest in (("base", "a"), ("jol", "b")):
        run_folder.start(runs / digest, demo_settings(loss, 0, SIZE), {"val_sha256": digest})
        told += [f"--{loss}", str(runs / digest)]
    none = ["--val-images", images, "--val-annotations", str(runs / "none.json")]
    for words, wanted in (
        (["7", *out, *given(runs)], "figure 7 is of one run: wanted --base DIR or --jol DIR"),
        (
            ["7", *out, *both, *given(runs)],
            "figure 7 is of one run: wanted --base DIR or --jol DIR",
        ),
        (["2", *out], "no figure '2'; wanted 1 or 3 to 7"),
        (["six", *out], "no figure 'six'; wanted"),
        (["1", *out, *given(runs)], "wanted --base DIR, --jol DIR or both"),
        (["1", *out, "--base", str(runs / "base")], "missing --val-images"),
        (["4", *out, *told[:2]], "does not say where the data are: wanted --dataset"),
        (["4", *out, *told], "were evaluated on different data; wanted --val-images"),
        (["1", *out, "--base", str(runs / "jol"), *given(runs)], "trained with another loss"),
        (["6", *out, "--base", str(tmp_path)], "no results of an evaluation"),
        (["3", "--out", str(tmp_path / "no" / "f.png")], "no folder"),
        (["3", "--out", str(tmp_path)], "is a folder or a device, wanted a file"),
        (["3", "--out", "."], "is a folder or a device, wanted a file"),
        (["3", "--out", str(tmp_path / "f")], "wanted the name of a file, ending in .png"),
        (["3", "--out", str(tmp_path / "f.xyz")], "wanted the name of a file, ending in .png"),
        (["6", *out, *both], "runs of different classes: {'base': ['car', "),
        (["1", *out, *both[:2], *none, "--device", "cpu"], "none.json: no positive sample in 3"),
    ):
        assert main(["figure", *words]) == 2, words
        error = capsys.readouterr().err
        assert wanted in error and len(error.splitlines()) <= 2 and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_figure_takes_the_data_of_its_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are, config.json says; what is given comes first."""
    images, annotations = json.loads((runs / "paths.json").read_text())
    shutil.copytree(runs / "jol", tmp_path / "jol")
    (tmp_path / "jol" / "metrics.jsonl").unlink()
    data = {"val_images": images, "val_annotations": annotations, "val_sha256": "x"}
    run_folder.start(tmp_path / "jol", demo_settings("jol", 0, SIZE), data)
    words = ["--jol", str(tmp_path / "jol"), "--images", "1", "--device", "cpu"]
    for number in ("4", "7"):
        out = tmp_path / f"{number}.png"
        assert main(["figure", number, "--out", str(out), *words]) == 0
        assert out.stat().st_size > 5000
    other = ["--val-images", images, "--val-annotations", str(tmp_path / "none.json")]
    assert main(["figure", "4", "--out", str(tmp_path / "x.png"), *words, *other]) == 2
    assert "none.json: no such file" in capsys.readouterr().err
