"""docs/adding-a-loss.md: its file runs, and its three functions agree."""

import importlib.util

import pytest
import torch
from cases import gradients, random_batch
from documents import code

from jolkernels import ops, registry
from jolkernels.batch import make_batch
from jolkernels.reference import joint_optimization_loss

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not ops.HAS_TRITON, reason="the page has a Triton kernel"),
]
TABLES = registry.CHOICES, registry.REFERENCE, registry.CLOSED_FORM, registry.KERNEL


@pytest.fixture
def page(tmp_path):
    """The module that the page's blocks make; what it registers is undone."""
    file = tmp_path / "quartic.py"  # Triton reads the source
    file.write_text("\n\n".join(code("adding-a-loss.md", "python")))
    found = importlib.util.spec_from_file_location("quartic", file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield module
    for table in TABLES:
        table["regression"].pop("quartic" if table is registry.CHOICES else module.Quartic)


@pytest.mark.parametrize("name", ["criterion", "other", "text"])
def test_it_computes_the_reference(page, name):
    """By the kernel or the closed form, as the mode of the tests has it."""
    criterion, batch = getattr(page, name), random_batch(("focal", "last"), "delta")
    loss = criterion(**batch)
    wanted = joint_optimization_loss(*make_batch(criterion.settings, **batch))
    torch.testing.assert_close(loss.total, wanted[0] + wanted[1])
    expected = gradients(wanted, batch)
    torch.testing.assert_close(gradients(loss, batch), expected, rtol=1e-9, atol=1e-11)


def test_the_parameter_counts(page):
    batch = random_batch(("focal", "last"), "delta")
    small, large = (f(**batch).regression for f in (page.criterion, page.other))
    torch.testing.assert_close(large, 4 * small)
