"""One optimizer step: precision, the ranks' gradients, clipping, and what is wrong with a bad one.

Everything random in a step depends on the seed, the step and the image's index in the batch, so a
resumed run, and one with another number of processes, draws the same.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectors.data.batches import Batch
from detectors.errors import TrainingError
from detectors.models.build import joint_head
from detectors.models.samplers import seed_images
from detectors.training.settings import TrainSettings
from detectors.utils.distributed import ALONE, World

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 1.0
"""Below this scale of fp16's loss a gradient that is not finite is the loss's fault, not fp16's."""


@dataclass(frozen=True)
class Outcome:
    """What came of a step, the same on all ranks.

    Attributes:
        values: losses by name, total, grad_norm and, with JOL, negative_weight: means over ranks.
        problem: why the update was skipped; "" if it was not.
        stop: whether a rank was asked to stop.
    """

    values: Mapping[str, float]
    problem: str
    stop: bool


def sgd(parameters: Iterable[Tensor], rate: float) -> torch.optim.SGD:
    """The optimizer of every run."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4)


class Stepper:
    """Takes optimizer steps with a model: SGD with momentum 0.9 and weight decay 1e-4.

    Args:
        model: from make_model; changed in place.
        settings: the run's.
        world: the processes that share each batch.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, world: World = ALONE) -> None:
        self.model, self.settings, self.world = model, settings, world
        self.network = model
        if world.group is not None:
            with warnings.catch_warnings():  # 2.15's new name for broadcast_buffers is not in 2.11
                warnings.simplefilter("ignore", FutureWarning)
                self.network = DistributedDataParallel(
                    model, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        norms = [m for m in model.modules() if type(m) is nn.BatchNorm2d]  # others learn none
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.optimizer = sgd(self.parameters, settings.lr)
        self.scaler = torch.amp.GradScaler(settings.device, enabled=settings.amp == "fp16")

    def state(self) -> dict[str, Any]:
        """What `load` needs to continue exactly, besides the model's state."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the weights and state of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])

    def __call__(self, batch: Batch | str, step: int, rate: float, stop: bool = False) -> Outcome:
        """Take step number `step` (from 1), or skip it where something is wrong with it.

        Args:
            batch: this rank's images and targets, or why there are none.
            step: the number of the step.
            rate: its learning rate.
            stop: whether this process was asked to stop after it.
        """
        if isinstance(batch, str) and self.world.group is None:
            return Outcome({}, batch, stop)
        problem = batch if isinstance(batch, str) else ""
        # Of several ranks, the others wait for the gradients of one that has no batch.
        images, targets = self._blank() if isinstance(batch, str) else batch
        self._seed(step, len(images))
        if not self.model.training:  # evaluation has been in between
            self.network.train()
        statistics = [buffer.clone() for buffer in self.statistics]  # which a forward pass changes
        try:
            losses = self._forward(images, targets)
        except FloatingPointError as error:  # a NaN that would take the process down
            problem = f"{error}; {_ids(targets)}"
            self._put_back(statistics)
            if self.world.group is not None:
                raise TrainingError(f"step {step}: {problem}") from error
            return Outcome({}, problem, stop)
        values = self._backward(losses)
        mine, means, failed, stopped = self._share(values, bool(problem), stop)
        if failed or not self._is_finite(means):
            problem = self._explain(problem, mine, targets)
            self._put_back(statistics)
        else:
            self._update(rate, values["grad_norm"], means["grad_norm"])
        if not (problem and stopped):  # else the resumed run takes this step again
            self.scaler.update()
        return Outcome(means, problem, stopped)

    def _forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> Any:
        device, amp = self.settings.device, self.settings.amp
        keys = ("boxes", "labels", "ignored")
        wanted = [{k: t[k].to(device) for k in keys if k in t} for t in targets]
        with torch.autocast(device, DTYPES[amp], enabled=amp != "off"):
            return self.network([image.to(device) for image in images], wanted)

    def _backward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the gradients; the step's values by name, 0-dim tensors."""
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        values = {**losses, "total": total, "grad_norm": norm}
        negative_weight = joint_head(self.model).negative_weight
        if negative_weight is not None:
            values["negative_weight"] = negative_weight
        return values

    def _share(
        self, values: Mapping[str, Tensor], failed: bool, stop: bool
    ) -> tuple[dict[str, float], dict[str, float], bool, bool]:
        """This rank's values, their means over the ranks, and whether any rank failed or stops.

        One transfer from the GPU and one between the ranks: everything there is to know of a step.
        """
        numbers = torch.stack([v.detach().double() for v in values.values()]).cpu()
        flags = torch.tensor([failed, stop], dtype=torch.float64)
        *sums, any_failed, any_stops = self.world.sum(torch.cat([numbers, flags])).tolist()
        mine = dict(zip(values, numbers.tolist(), strict=True))
        means = {k: v / self.world.size for k, v in zip(values, sums, strict=True)}
        return mine, means, bool(any_failed), bool(any_stops)

    def _update(self, rate: float, norm: Tensor, mean_norm: float) -> None:
        """Clip the gradients and take the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if mean_norm > self.settings.clip:  # else its factor is 1
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, norm)
        self.scaler.step(self.optimizer)

    def _seed(self, step: int, images: int) -> None:
        """Seed this step: the samplers from each image's index, everything else from the rank."""
        first = ((step - 1) * self.world.size + self.world.rank) * images
        seeds = [_number(self.settings.seed, 2, first + i) for i in range(images)]
        torch.manual_seed(_number(self.settings.seed, 3, step, self.world.rank))
        seed_images(self.model, seeds)

    def _put_back(self, statistics: Sequence[Tensor]) -> None:
        """Batch norm's running statistics as they were: a NaN would stay in them for good."""
        for buffer, before in zip(self.statistics, statistics, strict=True):
            buffer.copy_(before)

    def _is_finite(self, values: Mapping[str, float]) -> bool:
        """Whether the step can be used; fp16 scales gradients that are too large by itself."""
        scaling = self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE
        names = values.keys() - ({"grad_norm"} if scaling else set())
        return all(math.isfinite(values[name]) for name in names)

    def _explain(
        self, problem: str, mine: Mapping[str, float], targets: Sequence[dict[str, Any]]
    ) -> str:
        """What is wrong, in the words of the ranks where it is."""
        wrong = {k: v for k, v in mine.items() if not math.isfinite(v)}
        # The ranks share their gradients: those of a bad one are everybody's.
        own = {k: v for k, v in wrong.items() if k != "grad_norm"} or wrong
        if not problem and own and (self.world.size == 1 or own.keys() != {"grad_norm"}):
            what = ", ".join(f"{k} = {v}" for k, v in own.items())
            problem = f"{what}; {_ids(targets)}"
        problems = self.world.tell(problem)
        if self.world.size == 1:
            return problem
        by_rank = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
        return "; ".join(by_rank) or "the gradient of all ranks is not finite, their losses are"

    def _blank(self) -> Batch:
        """A batch of this rank's size with nothing in it."""
        count = self.settings.batch_size // self.world.size
        side = self.settings.crop or 128
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        images = [torch.zeros(3, side, side) for _ in range(count)]
        return images, [{**nothing, "image_id": None} for _ in images]


def _ids(targets: Sequence[dict[str, Any]]) -> str:
    return "image ids " + ", ".join(str(t["image_id"]) for t in targets)


def _number(*key: int) -> int:
    """A number for torch.manual_seed that looks random and depends on `key` alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
