"""What is built and installed, outside of the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta as b; b.build_{}({!r})"
EXTRAS = ("torchvision", "pycocotools", "faster_coco_eval", "matplotlib", "PIL", "scipy", "tqdm")
LOSS = """
import torch
import jolkernels

criterion = jolkernels.JointOptimizationLoss("focal", "giou", "xyxy")
logits = torch.zeros(3, 2, requires_grad=True)
boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4)
criterion(logits, boxes, torch.tensor([0, 1, 2]), boxes + 1).total.backward()
assert logits.grad.abs().sum() > 0

from jolkernels.cpu import native
print(jolkernels.__file__, native.library() is not None)
"""


def python(code: str, cwd: Path, *path: Path) -> str:
    """What a program prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    kept = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "*.egg-info", "runs", ".*cache")
    shutil.copytree(ROOT, folder / "tree", ignore=kept)
    python(BUILD.format("sdist", str(folder)), folder / "tree")
    (archive,) = folder.glob("jolkernels-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """The wheel built from it, installed alone."""
    folder = tmp_path_factory.mktemp("installed")
    python(BUILD.format("wheel", str(folder)), source)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", wheel], check=True)
    return folder / "site"


def test_the_loss_runs_without_the_extras_and_in_c(installed, tmp_path):
    without = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))"
    file, compiled = python(without + LOSS, tmp_path, installed).split()
    assert Path(file).is_relative_to(installed)
    assert compiled == str(shutil.which("cc") is not None)


def test_the_command_runs_with_the_extras(installed, tmp_path):
    code = "import sys; sys.argv = ['jol', '--help']; from detectors.__main__ import main; main()"
    assert "train" in python(code, tmp_path, installed)


def test_nothing_but_the_packages_is_installed(installed):
    there = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert there - {"bin", "__pycache__"} == {"jolkernels", "detectors", "bench"}
    assert (installed / "jolkernels" / "py.typed").exists()


def test_importing_it_takes_50_ms_at_most_beyond_torch(tmp_path):
    code = "import torch, time; a = time.process_time(); import jolkernels{}; print({} - a)"
    seconds = [
        min(float(python(code.format(what, "time.process_time()"), tmp_path, ROOT)) for _ in "123")
        for what in ("", "; jolkernels.JointOptimizationLoss")
    ]
    assert seconds[0] < 0.05
    assert seconds[1] < 0.25  # the first use of a name
