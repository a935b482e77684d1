"""Every detector learns four generated images by heart, with the base loss and with JOL."""

import pytest

from detectors.data import CocoDetection
from detectors.data.synthetic import write_scenes
from detectors.models import DETECTORS
from detectors.training import loop
from detectors.training.settings import resolve

STEPS = dict.fromkeys(DETECTORS, 250) | {"detectors": 150}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("loss", ["base", "jol"])
def test_four_images_are_learned_by_heart(name, loss, tmp_path):
    images, annotations = write_scenes(tmp_path / "scenes", images=4, seed=0, size=96)
    data = CocoDetection(images, annotations)
    settings = resolve(
        {
            "detector": name,
            "loss": loss,
            "preset": "slim",
            "max_steps": STEPS[name],
            "batch_size": 2,
            "lr": 0.01,
            "crop": None,
            "eval_every": 0,
        },
        len(data),
        None,
        {},
    )
    (tmp_path / "run").mkdir()
    model = loop.make_model(settings, len(data.class_names))
    result = loop.train(settings, model, data, data, tmp_path / "run")
    assert result.evaluation.metrics["AP"] > 0.5
