"""The harness's benchmark: both loops do the same work, and it measures."""

import argparse
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from bench import reference_loop, training_loop
from detectors.data import CocoDetection, train_batches
from detectors.data.synthetic import write_scenes
from detectors.training import loop
from detectors.training.settings import TrainSettings
from detectors.training.step import Stepper


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    images, annotations = write_scenes(tmp_path_factory.mktemp("scenes"), images=5, seed=0, size=64)
    return argparse.Namespace(
        images=images,
        annotations=annotations,
        device="cpu",
        preset="slim",
        batch_size=2,
        steps=1,
        pairs=2,
        workers=[0],
        alone=None,
    )


@pytest.fixture(scope="module")
def settings(given: argparse.Namespace) -> TrainSettings:
    return training_loop.settings_of(given, 0, 3)


def test_the_reference_sees_the_harness_s_pictures(
    given: argparse.Namespace, settings: TrainSettings
) -> None:
    """Decoded and mirrored by other code, over more than an epoch."""
    data = CocoDetection(given.images, given.annotations)
    pictures = reference_loop.Pictures(data, given.images)
    theirs = [
        [pictures[key] for key in batch] for batch in reference_loop.choices(len(data), settings)
    ]
    ours = list(train_batches(data, batch_size=2, crop=None, seed=0, steps=settings.steps))
    assert len(ours) == len(theirs) == 4
    mirrored = [key[1] for batch in reference_loop.choices(len(data), settings) for key in batch]
    assert {True, False} == set(mirrored)
    for (images, targets), batch in zip(ours, theirs, strict=True):
        for image, target, (picture, wanted) in zip(images, targets, batch, strict=True):
            torch.testing.assert_close(picture, image, rtol=0, atol=1e-7)
            assert torch.equal(wanted["boxes"], target["boxes"])
            assert torch.equal(wanted["labels"], target["labels"] + 1)


def test_both_loops_begin_with_the_same_losses_and_gradients(
    given: argparse.Namespace, settings: TrainSettings
) -> None:
    """torchvision's classes with the harness's weights; all samples are taken, so none is drawn."""
    data = CocoDetection(given.images, given.annotations)
    ours = loop.make_model(settings, len(data.class_names))
    theirs = reference_loop.torchvision_model(settings, len(data.class_names))
    assert type(theirs.rpn) is RegionProposalNetwork and type(theirs.roi_heads) is RoIHeads
    for model in (ours, theirs):
        for part in (model.rpn, model.roi_heads):
            assert isinstance(part, torch.nn.Module)
            part.fg_bg_sampler.batch_size_per_image = 10_000
    batch = next(train_batches(data, batch_size=2, crop=None, seed=0, steps=1))
    outcome = Stepper(ours, settings)(batch, 1, 0.0)
    wanted = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in batch[1]]
    losses = theirs(batch[0], wanted)
    total = sum(losses.values())
    total.backward()
    parameters = list(theirs.parameters())
    norm = torch.nn.utils.clip_grad_norm_(parameters, 10.0)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(outcome.values[name], rel=1e-4), name
    assert total.item() == pytest.approx(outcome.values["total"], rel=1e-5)
    assert norm.item() == pytest.approx(outcome.values["grad_norm"], rel=1e-3)


def test_the_loops_take_the_steps_that_they_should(
    given: argparse.Namespace, settings: TrainSettings, tmp_path: Path
) -> None:
    """At the same rates; the weights move; the harness writes no checkpoint within them."""
    found: dict[str, list[float]] = {}
    for name in training_loop.LOOPS:
        with closing(training_loop.make(name, settings, given, tmp_path)) as steps:
            found[name] = [next(steps) for _ in range(3)]
    # The samplers' draws, and with them the losses, differ a little.
    assert found["harness"] == pytest.approx(found["reference"], rel=0.1)
    assert found["harness"] != found["reference"]
    assert (tmp_path / "reference.txt").read_text().startswith("[0]  loss: ")
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.slow
def test_it_measures(
    given: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training_loop, "MEMORY_STEPS", 1)
    out = tmp_path / "harness.md"
    words = [f"--{k.replace('_', '-')}={getattr(given, k)}" for k in training_loop.SHARED]
    training_loop.main([*words, "--steps=1", "--pairs=2", "--workers=0", f"--out={out}"])
    row = out.read_text().splitlines()[-1]
    assert row == capsys.readouterr().out.splitlines()[-1]
    cells = row.strip("| ").split(" | ")
    assert [cells[0], cells[3]] == ["0", "2"]
    assert all(0.1 < float(cell.split()[0]) < 10 for cell in cells[4:6])
    assert 200 < float(cells[6]) < 20_000 and 0.5 < float(cells[8]) < 2
