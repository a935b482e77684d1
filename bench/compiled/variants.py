"""Ways to use the loss, and what its kernels need when they are compiled for each."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.ahead_of_time import TARGETS, compile_launch
from bench.compiled import sass
from bench.compiled.executed import widest
from bench.ptx import compiled
from jolkernels import JointOptimizationLoss
from jolkernels.batch import accumulator, make_batch
from jolkernels.kernels import launch
from jolkernels.kernels.launch import Launch
from jolkernels.spec import CHOICES

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16,
          "bf16": torch.bfloat16}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to use the loss: choices, columns of the logits, box slots, dtype, more inputs."""

    name: str
    choices: tuple[tuple[str, Any], ...]
    columns: int
    slots: int = 1
    dtype: str = "fp32"
    inputs: tuple[str, ...] = ()

    def launches(self) -> list[Launch]:
        """The launches of its forward and backward, on tensors without memory."""
        criterion = JointOptimizationLoss(**dict(self.choices))
        n, dtype = 4096, DTYPES[self.dtype]
        boxes = torch.float64 if dtype == torch.float64 else torch.float32

        def empty(*shape: int, dtype: torch.dtype = boxes) -> Tensor:
            return torch.empty(shape, device="meta", dtype=dtype)

        integers = {"groups": torch.int64}
        more: dict[str, Any] = {
            name: empty(
                self.columns if name == "class_weights" else n, dtype=integers.get(name, boxes)
            )
            for name in self.inputs
        }
        if "groups" in more:
            more["num_groups"] = 6
        batch, call = make_batch(
            criterion.settings,
            empty(n, self.columns, dtype=dtype),
            empty(n, 4 * self.slots, dtype=dtype),
            empty(n, dtype=torch.int64),
            empty(n, 4),
            empty(n, 4),
            **more,
        )
        result, forward, _ = launch.plan_forward(batch, call)
        upstream = empty(*call.shape, dtype=accumulator(batch))
        needs = (True, True, "extra_regression" in more)
        saved = (result.rows, result.scalars, upstream, upstream, needs)
        return forward + launch.plan_backward(batch, call, *saved)[1]


@dataclass(frozen=True)
class Report:
    """What one kernel of a variant became on one target.

    Attributes:
        load_bytes: a thread's, in the widest load of logits.
        store_bytes: in the widest store of their gradient.
    """

    kernel: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    load_bytes: int | None
    store_bytes: int | None


def heads() -> list[Variant]:
    """The heads of the reference detectors at their real widths."""
    rcnn = (("classification", "cross_entropy"), ("regression", "smooth_l1"), ("coding", "delta"),
            ("background", "first"))  # fmt: skip
    retinanet = (("classification", "focal"), ("regression", "l1"), ("coding", "delta"))
    fcos = (("classification", "focal"), ("regression", "giou"), ("coding", "ltrb"))
    return [
        *(Variant("faster_rcnn", rcnn, c, c) for c in (9, 81, 1204)),
        *(Variant("cascade_rcnn", rcnn, c) for c in (9, 81, 13205)),
        *(Variant("retinanet", retinanet, c) for c in (8, 80)),
        *(Variant("fcos", fcos, c) for c in (8, 80)),
    ]


def single_choices() -> Iterator[Variant]:
    """Every choice of the specification once, the others as the default detector has them."""
    for kind, names in CHOICES.items():
        for name in names:
            choices = {"regression": "smooth_l1", "coding": "delta", kind: name}
            yield Variant(f"{kind}={name}", tuple(choices.items()), columns=9)
    for constant in (("weighting", "none"), ("detach_weights", True), ("class_score", None),
                     ("location_score", None)):  # fmt: skip
        yield Variant(f"{constant[0]}={constant[1]}", (("coding", "delta"), constant), 9)


INPUTS = ("class_targets", "extra_regression", "class_weights", "groups")


def parameters() -> Iterator[Variant]:
    """Parameters that choose other code."""
    for kind, choice in (
        ("classification", "focal:gamma=1.5"),
        ("classification", "varifocal:detach=True,positives=label"),
        ("classification", "mal:gamma=2,detach=False"),
        ("regression", "iou:mode=log"),
        ("regression", "iou:mode=square"),
        ("regression", "nwd:mix=0.5"),
        ("regression", "5*l1+2*(inner:loss=(focaler:loss=ciou))"),
        ("coding", "delta:low_clip=-4.0"),
    ):
        choices = {"regression": "giou", "coding": "delta", kind: choice}
        yield Variant(f"{kind}={choice}", tuple(choices.items()), columns=9)


def more_inputs() -> Iterator[Variant]:
    """Each further input, and all of them at once."""
    choices = ("regression", "giou"), ("coding", "delta")
    for name in CHOICES["classification"]:
        head = (("classification", name), *choices)
        allowed = INPUTS[1:] if name == "cross_entropy" else INPUTS
        if name in ("cross_entropy", "focal"):
            for given in allowed:
                yield Variant(f"{name}, {given}", head, columns=9, inputs=(given,))
        yield Variant(f"{name}, all inputs", head, columns=9, inputs=allowed)


def resources(compiled: Any) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled a thread, bytes of shared memory a program."""
    if "amdgcn" in compiled.asm:
        found = {
            key: int(re.findall(rf"\.{key}:\s+(\d+)", compiled.asm["amdgcn"])[0])
            for key in ("vgpr_count", "vgpr_spill_count", "group_segment_fixed_size")
        }
        return found["vgpr_count"], 4 * found["vgpr_spill_count"], found["group_segment_fixed_size"]
    text = sass.tool("cuobjdump", "--dump-resource-usage", cubin=compiled.asm["cubin"])
    used = {key: int(re.findall(rf"{key}:(\d+)", text)[0]) for key in ("REG", "STACK", "LOCAL")}
    return used["REG"], used["STACK"] + used["LOCAL"], compiled.metadata.shared


def report(launches: Iterable[Launch], target: str) -> list[Report]:
    """Compile launches for a target."""
    reports = []
    for call in launches:
        name = call.plan.kernel.fn.__name__
        if TARGETS[target].backend == "cuda":
            made = compiled(call, target)
            used = resources(made.kernel)
            widths = (
                widest(made, call, "logits", "load"),
                widest(made, call, "grad_logits", "store"),
            )
        else:
            used, widths = resources(compile_launch(call, TARGETS[target])), (None, None)
        reports.append(Report(name, *used, *widths))
    return reports
