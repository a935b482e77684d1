"""The package's types, as a user's type checker sees them once it is installed."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = """\
import torch
from jolkernels import JointLoss, JointOptimizationLoss, joint_optimization_loss
from jolkernels.spec import Delta, SmoothL1
criterion = JointOptimizationLoss("cross_entropy", SmoothL1(beta=1 / 9), coding=Delta(), lam=1.5)
logits, codes = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
labels, boxes = torch.tensor([0, 1, 3]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(3, 4)
loss: JointLoss = criterion(logits, codes, labels, boxes, priors=boxes + 1)
torch.autograd.backward(loss.total)
same = joint_optimization_loss(logits, codes, labels, boxes, priors=boxes + 1, coding="delta")
print(loss.num_positives.item(), same.total.dtype, criterion.settings.sync_group)
"""
WRONG = """\
from jolkernels import JointOptimizationLoss
criterion = JointOptimizationLoss("focal", lam="2")
JointOptimizationLoss(lamda=2.0)
number: int = criterion("logits").total
rows: int = criterion.per_sample("logits").weight
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the files that an installation copies, py.typed among them."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "jolkernels", source / "jolkernels")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py"]
    subprocess.run([*build, "--build-lib", str(site)], cwd=source, check=True, capture_output=True)
    assert (site / "jolkernels" / "cpu" / "rows.c").exists()
    return environment


@pytest.fixture
def check(installed, tmp_path, pytestconfig):
    """Run mypy --strict on a script; its cache is kept, as torch takes it half a minute."""

    def run(text):
        (tmp_path / "script.py").write_text(text)
        python = installed / "bin" / "python"
        cache = pytestconfig.cache.mkdir("mypy")
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
        return subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python),
             "--cache-dir", str(cache), "script.py"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_script_of_ten_lines_is_strictly_typed_and_runs(check, tmp_path):
    done = check(SCRIPT)
    assert done.stdout.startswith("Success: no issues found in 1 source file"), done.stdout
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout == "2 torch.float32 None\n", ran.stderr


@pytest.mark.slow
def test_its_mistakes_are_found(check):
    """By name and position, so that the types are there and are not Any."""
    lines = check(WRONG).stdout.splitlines()
    assert any("script.py:2: " in line and 'expected "float"' in line for line in lines), lines
    assert any("script.py:3: " in line and '"lamda"' in line for line in lines), lines
    assert any("script.py:4: " in line and 'expected "Tensor"' in line for line in lines), lines
    assert any("script.py:4: " in line and 'variable has type "int"' in line for line in lines)
    assert any("script.py:5: " in line and 'expected "Tensor"' in line for line in lines), lines
    assert any("script.py:5: " in line and 'variable has type "int"' in line for line in lines)
