"""Weights that a backbone starts from: what is said of those that are not there."""

import socket
import urllib.error
import urllib.request
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
import torch

from detectors.cli import main
from detectors.data.synthetic import write_scenes
from detectors.models import build_detector
from detectors.models.backbones import SILENCE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            urllib.error.URLError(socket.gaierror(-3, "Temporary failure\nin resolution")),
            "failure in",
        ),
        (urllib.error.HTTPError("u", 403, "Forbidden", None, None), "Forbidden"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), "timed out"),
        (IncompleteRead(b"x", 9), "IncompleteRead(1 bytes read, 9 more expected)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_without_a_network(
    error: Exception,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file that is missing, and what to give instead, in a line; it was <urlopen error ...>."""
    waited = []

    def fail(*_: Any, **__: Any) -> None:
        waited.append(socket.getdefaulttimeout())
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "urlopen", fail)
    images, annotations = write_scenes(tmp_path / "scenes", images=1, seed=0, size=64)
    words = ["train", "--detector", "fcos", "--loss", "base", "--out", str(tmp_path / "run")]
    for split in ("train", "val"):
        words += [f"--{split}-images", str(images), f"--{split}-annotations", str(annotations)]
    assert main([*words, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert waited == [SILENCE] and socket.getdefaulttimeout() is None
    line = said[-1]
    file = tmp_path / "hub" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    assert line.startswith(
        f"jol train: backbone_weights: {file} is missing and cannot be downloaded"
    )
    assert reason in line and "urlopen" not in line
    assert line.endswith("or give --backbone-weights none|FILE or --preset slim, which needs none")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (torch.nn.Linear(1, 1), "holds more than tensors and plain values, or is damaged; wanted"),
        (b"no file of torch", "holds more than tensors and plain values, or is damaged; wanted"),
        (b"", "is no file of torch.save, or is damaged"),
        ([1.0], "holds no state dict of tensors"),
    ],
    ids=["a whole module", "text", "nothing", "a list"],
)
def test_a_file_of_something_else(content: Any, wanted: str, tmp_path: Path) -> None:
    """In our words: torch's are a page on arbitrary code execution."""
    file = tmp_path / "w.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError) as caught:
        build_detector("fcos", 1, backbone="resnet18", backbone_weights=file)
    assert wanted in str(caught.value) and len(str(caught.value)) < 250 + len(str(file))
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
