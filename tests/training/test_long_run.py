"""Five hundred steps leave the process as large as a hundred did."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from detectors.commands import demo
from detectors.commands.demo import DemoSize
from detectors.data import CocoDetection
from detectors.data.synthetic import write_scenes
from detectors.training import loop, run_folder
from detectors.utils.progress import Progress

MEGABYTES = 25
"""What the allocator's noise may add; a tensor of the smallest map a step would be 60."""


def resident() -> float:
    """Megabytes of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["base", "jol"])
def test_memory_is_flat(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CocoDetection(*write_scenes(tmp_path / "scenes", images=4, seed=0, size=48))
    settings = demo.demo_settings(loss, 0, DemoSize(crop=32, steps=500, batch_size=1))
    settings = replace(settings, lr=1e-4)
    sizes: dict[int, float] = {}
    step = Progress.step

    def noted(
        self: Progress, done: int, fields: Sequence[str] = (), seconds: Sequence[float] = ()
    ) -> None:
        if done % 100 == 0 and fields:
            sizes[done] = resident()
        step(self, done, fields, seconds)

    monkeypatch.setattr(Progress, "step", noted)
    model = loop.make_model(settings, len(data.class_names))
    run_folder.start(tmp_path / "run", settings, {})
    loop.train(settings, model, data, data, tmp_path / "run")
    print(sizes)
    assert list(sizes) == [100, 200, 300, 400, 500]
    assert sizes[500] - sizes[100] < MEGABYTES
