"""The fused loss against everything people would use instead, on this machine.

    python -m bench [--out DIR] [--cases rcnn-81 ...] [--compare EARLIER.csv]      (or: jol bench)

Writes results.csv, results.md and plots under --out. Each provider's loss and gradients are checked
against the paper's equations in float64 before and after it is timed; one that fails gets no
times, and the exit status is 1. Also measured: launches, waits, memory, first-call time with empty
compiler caches, the copy bandwidth; with --parts steps whole training steps, with --parts compile
what compilers make of the kernels (no GPU needed).

    python -m bench compile [--cases retinanet-80 ...] [--targets sm_90 ...] [--json FILE]
    python -m bench host [--json FILE]
    python -m bench dense [--out DIR] [--cases retinanet-80 ...] [--formats channels_last ...]
    python -m bench frameworks [--out DIR] [--cases torchvision ultralytics/yolo26n ...]
    python -m bench study run --minutes M | report

The first two say what compilers make of the kernels (bench/compiled/report.py), and what a call
costs the host (bench/host.py); neither needs a GPU. The third measures from the levels of a dense
head to their gradients (bench/dense/command.py). The fourth compares JOL in other frameworks'
models with these models' own losses, on a CPU (bench/frameworks/command.py). The last trains
detectors, to see whether JOL helps (bench/study/command.py).
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.loss.cases import CASES, DTYPES, Name
from bench.loss.options import add_options, add_providers, empty, empty_caches, settle
from detectors.models.presets import DETECTORS
from detectors.utils.argument_types import file, one_of
from detectors.utils.parser import Parser

if TYPE_CHECKING:
    from bench.loss import report

PARTS = ("loss", "steps", "compile")
COMMANDS = {
    "compile": "bench.compiled.report",
    "dense": "bench.dense.command",
    "frameworks": "bench.frameworks.command",
    "host": "bench.host",
    "study": "bench.study.command",
}
"""First words of a command line that are commands of their own."""


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line; what depends on the machine is None until torch is imported."""
    made = Parser(
        prog=prog,
        description=__doc__.split("\n")[0],
        epilog=f"Without a GPU: {prog} compile, what the compiled kernels cost, and {prog} host, "
        f"what a call costs the host. {prog} dense: from a dense head's outputs to their "
        f"gradients. {prog} frameworks: JOL in other frameworks' models, and their own losses. "
        f"{prog} study: whether JOL helps. "
        "--help after any of them lists its options.",
    )
    add = made.add_argument
    add(
        "--parts",
        nargs="+",
        type=one_of({part: part for part in PARTS}),
        metavar="PART",
        help="loss: the loss alone; steps: training steps; compile: the compiled kernels' cost "
        "(default: loss, and compile on a CPU, steps on a GPU)",
    )
    add_options(made, "runs/bench", CASES)
    add_providers(made, Name, "those that make sense for device, case and dtype")
    add(
        "--dtypes",
        nargs="+",
        type=one_of({name: name for name in DTYPES}),
        metavar="DTYPE",
        help=f"of logits and boxes: {', '.join(DTYPES)} (default: float32, on a GPU also bfloat16 "
        "and float16)",
    )
    add("--compare", metavar="FILE", type=file, help="an earlier results.csv: print what changed")
    return made  # fmt: skip


def main(arguments: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Measure, write, print; 0 done, 1 wrong numbers or a failure, 2 unusable arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return command(words[0], words[1:], prog)
    try:
        options = parser(prog).parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    from bench.loss import report
    from bench.loss.run import PLOTS

    try:
        gpu = settle(options) == "cuda"
        parts = options.parts or ["loss", "steps" if gpu else "compile"]
        options.dtypes = options.dtypes or ["float32", *(["bfloat16", "float16"] if gpu else [])]
        earlier = report.read_csv(options.compare) if options.compare else None
        empty(options.out, PLOTS)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    with empty_caches():
        return measure(options, parts, earlier, prog)


def command(name: str, words: Sequence[str], prog: str) -> int:
    """Run a command of COMMANDS; its exit status, 2 where Triton is not installed."""
    try:
        module = importlib.import_module(COMMANDS[name])
    except ModuleNotFoundError as error:
        print(f"{prog} {name}: {error}", file=sys.stderr)
        return 2
    try:
        return int(module.main(words, f"{prog} {name}"))
    except SystemExit as stop:
        return int(stop.code or 0)


def measure(
    options: argparse.Namespace, parts: Sequence[str], earlier: "list[report.Row] | None", prog: str
) -> int:
    """The parts in their order, and the report whatever becomes of them."""
    from bench import detector_cost
    from bench.loss.run import Run

    run = Run(options)

    def measured() -> None:
        if "steps" in parts:
            run.steps(DETECTORS, detector_cost.step_samples)
        if "loss" in parts:
            run.losses()
        if "compile" in parts:
            run.part("compiling the kernels ahead of time", lambda: compile_kernels(options.out))

    return run.complete(measured, prog, earlier)


def compile_kernels(out: Path) -> None:
    """Write what compilers make of the kernels."""
    from bench.compiled import report  # needs Triton

    found = report.measure(report.CASES, ("fp32", "bf16"), report.TARGETS)
    report.write(found, report.report(found), out / "compiled.md", out / "compile.json")


if __name__ == "__main__":
    sys.exit(main())
