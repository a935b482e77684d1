"""Tiny trees of the paper's data sets, and runs of `jol reproduce` that end at once."""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import pytest
from published import TRAIN, write_tree
from reproducing import has_free

from detectors.commands import sweep, train
from detectors.paper.reproduction import NUMBERS
from detectors.training import timing
from detectors.training.settings import resolve
from detectors.training.timing import Speed


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each data set by its name."""
    root = tmp_path_factory.mktemp("trees")
    for name in NUMBERS:
        write_tree(name, root / name)
    return root


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs that leave results at once, a hundredth more AP with each; their words."""
    calls: list[list[str]] = []

    def launch(words: list[str]) -> int:
        calls.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        args = Namespace(**train.parse(words[1:]))
        settings = resolve(train.given_settings(args), TRAIN, args.dataset, {})
        config = {"settings": dataclasses.asdict(settings), "data": {}}
        (out / "config.json").write_text(json.dumps(config))
        (out / "results.json").write_text(json.dumps({"AP": 0.01 * len(calls)}))
        return 0

    monkeypatch.setattr(sweep, "_launch", launch)
    speeds = Speed(0.5, 0.25, 3_000_000_000, 1_000_000_000, "a GPU")
    monkeypatch.setattr(timing, "measure", lambda settings, *_: [speeds] * len(settings))
    has_free(monkeypatch, 10**15)
    return calls
