"""What the compilers make of the kernels, on a machine without a GPU.

    python -m bench.compile_report --out DIR [--targets sm_90 gfx942] [--dtypes fp32 bf16]

Compiles the kernels ahead of time for several GPUs, exactly as jolkernels.kernels.launch would
launch them, and writes aot.json and aot.md: registers, spills and shared memory as the assembler
reports them, the width in bits of the loads and stores of the logits, and the bytes that a row
moves against the model of three passes over the logits (docs/mathematics.md).
"""

import argparse
import inspect
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from torch import Tensor

from bench.compiled import TARGETS, compile_launch
from detectors.utils.text_tables import markdown
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
    """What one kernel of a variant became on one target; bytes and bits as named."""

    variant: str
    dtype: str
    columns: int
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    load_bits: int | None
    store_bits: int | None
    row_bytes: int | None
    model_bytes: int | None


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
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = {key: int(re.findall(rf"{key}:(\d+)", text)[0]) for key in ("REG", "STACK", "LOCAL")}
    return used["REG"], used["STACK"] + used["LOCAL"], compiled.metadata.shared


def widths(call: Launch, compiled: Any, dtype: torch.dtype) -> tuple[int | None, int | None]:
    """Bits of the widest load and store that PTX has on the source lines of a tile of logits."""
    if "ptx" not in compiled.asm:
        return None, None
    lines, first = inspect.getsourcelines(call.kernel.fn)
    text = "".join(lines)
    marks = {"ld": r"z = tl\.load\(.*?\)\.to", "st": r"tl\.store\(out, d, "}
    found: dict[str, int | None] = {"ld": None, "st": None}
    for operation, mark in marks.items():
        match = re.search(mark, text, re.DOTALL)
        if match is None:
            continue
        numbers = range(
            first + text.count("\n", 0, match.start()), first + text.count("\n", 0, match.end()) + 1
        )
        line = 0
        for row in compiled.asm["ptx"].splitlines():
            if location := re.match(r"\s*\.loc\s+\d+\s+(\d+)", row):
                line = int(location[1])
            access = re.search(rf"\b{operation}\.global\S*?(?:\.v(\d))?\.b(\d+)", row)
            if access and line in numbers:
                bits = int(access[1] or 1) * int(access[2])
                found[operation] = max(found[operation] or 0, bits)
    return found["ld"], found["st"]


def row_bytes(variant: Variant, kernel: str) -> tuple[int | None, int | None]:
    """Bytes that a positive row moves, and the model's: one or two passes over the logits."""
    size = DTYPES[variant.dtype].itemsize
    logits = variant.columns * size
    kept = JointOptimizationLoss(**dict(variant.choices)).settings.kept
    row = 8 + 4 * size + 4 * 4 + 4 * 4 + 4 * kept  # label, box, target, prior, what is kept
    row += sum({"groups": 8, "class_weights": 0}.get(name, 4) for name in variant.inputs)
    if kernel == "rows_kernel":
        return logits + row, logits
    if kernel == "gradients_kernel":
        extra = 4 * ("extra_regression" in variant.inputs)
        return 2 * logits + row + 4 * variant.slots * size + extra, 2 * logits
    return None, None


def report(variant: Variant, target: str) -> list[Report]:
    """Compile all kernels of a variant for a target."""
    reports = []
    for call in variant.launches():
        compiled = compile_launch(call, TARGETS[target])
        name = call.kernel.fn.__name__
        reports.append(
            Report(
                variant.name,
                variant.dtype,
                variant.columns,
                name,
                target,
                *resources(compiled),
                *widths(call, compiled, DTYPES[variant.dtype]),
                *row_bytes(variant, name),
            )
        )
    return reports


def as_markdown(reports: list[Report]) -> str:
    """A row a kernel; for each target registers / bytes spilled / bytes of shared memory."""
    targets = list(dict.fromkeys(r.target for r in reports))
    head = ["variant", "dtype", "C", "kernel", *targets, "load", "store", "row", "model"]
    about = (
        "For each target registers a thread / bytes spilled / bytes of shared memory; bits of the "
        "widest load and store of logits; bytes that a positive row moves, and the model's."
    )
    rows: list[list[str]] = []
    kernels: dict[tuple[Any, ...], dict[str, Report]] = {}
    for r in reports:
        kernels.setdefault((r.variant, r.dtype, r.columns, r.kernel), {})[r.target] = r
    for key, found in kernels.items():
        used = [found[t] for t in targets]
        costs = [f"{r.registers}/{r.spill_bytes}/{r.shared_bytes}" for r in used]
        widest = [max(getattr(r, side) or 0 for r in used) for side in ("load_bits", "store_bits")]
        rest = [v or "" for v in (*widest, used[0].row_bytes, used[0].model_bytes)]
        rows.append(list(map(str, (*key, *costs, *rest))))
    return "\n".join([about, "", *markdown(head, rows, labels=len(head))]) + "\n"


def write(
    folder: Path,
    variants: Sequence[Variant],
    targets: Sequence[str] = tuple(TARGETS),
    dtypes: Sequence[str] = ("fp32", "bf16"),
) -> list[Report]:
    """Compile the variants and write aot.json and aot.md."""
    chosen = [replace(v, dtype=dtype) for v, dtype in itertools.product(variants, dtypes)]
    reports: list[Report] = []
    for i, (variant, target) in enumerate(itertools.product(chosen, targets), 1):
        reports += report(variant, target)
        progress = f"\r{i}/{len(chosen) * len(targets)} {variant.name} {target}"
        print(f"{progress:60}", end="", flush=True)
    print()
    folder.mkdir(parents=True, exist_ok=True)
    title = f"# Kernels compiled by Triton {triton.__version__}\n\n"
    (folder / "aot.md").write_text(title + as_markdown(reports))
    (folder / "aot.json").write_text(json.dumps([asdict(r) for r in reports], indent=1))
    return reports


def main() -> None:
    """Compile everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for aot.json and aot.md")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    options = parser.parse_args()
    variants = [*heads(), *single_choices(), *parameters(), *more_inputs()]
    reports = write(options.out, variants, options.targets, options.dtypes)
    spilled = sum(r.spill_bytes > 0 for r in reports)
    print(f"{len(reports)} kernels, {spilled} with spills: {options.out}/aot.md")


if __name__ == "__main__":
    main()
