"""docs/recipes.md: Lightning."""

import pytest
import torch
from documents import code

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.loggers import CSVLogger


def batches(count):
    boxes = torch.tensor([[10.0, 10, 24, 22], [30, 34, 44, 50]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 0])}
    made = [([torch.rand(3, 64, 64)], [target]) for _ in range(count)]
    return torch.utils.data.DataLoader(made, batch_size=None)


@pytest.mark.filterwarnings("ignore")
def test_a_module_trains_logs_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=CSVLogger(tmp_path), log_every_n_steps=1,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    (block,) = code("recipes.md", "python", "## Lightning")
    kept = {}

    class Kept(lightning.Callback):
        def on_fit_end(self, trainer, module):
            kept["module"] = module

    trainer.callbacks.append(Kept())
    names = {"trainer": trainer, "loader": batches(2)}
    exec(block.replace("num_classes=8", "num_classes=2, min_size=64, max_size=64"), names)
    module = kept["module"]
    metrics = trainer.logged_metrics
    assert metrics["negative_weight"] == module.model.head.negative_weight
    assert 1 < metrics["negative_weight"] <= 2
    path = trainer.checkpoint_callback.best_model_path
    again = names["Detector"].load_from_checkpoint(path, num_classes=2, min_size=64, max_size=64)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
