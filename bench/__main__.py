"""The fused loss against everything people would use instead, on this machine.

    python -m bench [--out DIR] [--cases rcnn-81 ...] [--compare EARLIER.csv]      (or: jol bench)

Writes results.csv, results.md and plots under --out. Each provider's loss and gradients are checked
against the paper's equations in float64 first; one that fails is not timed, and the exit status
is 1. Beside times: launches, waits, memory, first-call time, the copy bandwidth; with --parts steps
whole training steps, with --parts compile what compilers make of the kernels (no GPU needed).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from bench import aot, detectors, measure, results
from bench.cases import CASES, DTYPES, SWEEP, Case, Inputs, make_inputs
from bench.measure import Sample, counts, first_call, step
from bench.providers import PROVIDERS, Loss, Provider
from bench.results import Row

PARTS = ("loss", "steps", "compile")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists the options\n")


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(
        prog=prog,
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    add = made.add_argument
    add("--out", metavar="DIR", type=Path, default=Path("runs/bench"), help="folder to write to")
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["loss", "steps" if gpu else "compile"],
        help="loss: the loss alone; steps: training steps; compile: registers and the like",
    )
    add(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        metavar="CASE",
        help=", ".join(CASES),
    )
    add(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        metavar="DTYPE",
        default=["float32", "bfloat16", "float16"] if gpu else ["float32"],
        help="of logits and boxes: " + ", ".join(DTYPES),
    )
    add(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        metavar="NAME",
        default=[p.name for p in PROVIDERS.values() if gpu or not p.gpu_only],
        help=", ".join(PROVIDERS),
    )
    add("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu", help="to measure on")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on a CPU")
    add("--seconds", type=float, default=0.5, help="of samples for a provider of a case")
    add(
        "--limit",
        type=float,
        default=450 if gpu else 3600,
        help="seconds after which no further case is begun",
    )
    add("--compare", metavar="FILE", type=Path, help="an earlier results.csv: print what changed")
    return made  # fmt: skip


def main(arguments: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Measure, write, print; 0 done, 1 a provider gave wrong numbers, 2 unusable arguments."""
    try:
        options = parser(prog).parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no GPU here")
        earlier = results.read_csv(options.compare) if options.compare else []
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    run = Run(options)
    if "loss" in options.parts:
        run.losses()
    if "steps" in options.parts:
        run.steps()
    if "compile" in options.parts:
        _say("compiling the kernels ahead of time")
        aot.write(options.out, [v for v in aot.heads() if v.columns < 1000])
    text = run.report()
    print("\n" + text)
    if earlier:
        print(f"Against {options.compare}: {results.comparison(earlier, run.rows)}")
    print(f"written to {options.out}")
    return 1 if any(results.failed(r) for r in run.rows) else 0


class Run:
    """The rows of a run, as they come; the CSV is written after each case."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.about = results.machine(self.device)
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.deadline = time.perf_counter() + options.limit

    def losses(self) -> None:
        """Every case in every dtype."""
        copy = measure.copy_bandwidth(self.device)
        self.add(("copy", 0, 0, "float32"), "torch", "copy bandwidth", "GB/s", copy)
        for dtype in self.options.dtypes:
            for name in self.options.cases:
                if name in SWEEP and dtype != "float32":
                    continue
                if time.perf_counter() > self.deadline:
                    self.left_out.append(f"{name} {dtype}")
                    continue
                self.case(CASES[name], dtype)
                self.save()

    def case(self, case: Case, dtype: str) -> None:
        """Check, then count, then time the providers of a case."""
        torch._dynamo.reset()  # or the compiler would make shapes dynamic
        where = (case.name, case.rows, case.columns, dtype)
        x = make_inputs(case, DTYPES[dtype], str(self.device))
        wanted: dict[Callable[[Case], Loss], tuple[torch.Tensor, ...]] = {}
        good: dict[str, Loss] = {}
        for name in self.options.providers:
            provider = PROVIDERS[name]
            loss = provider.make(case)
            if loss is None:
                continue
            _say(f"{case.name} {dtype} {name}")
            if provider.oracle not in wanted:
                wanted[provider.oracle] = step(provider.oracle(case), x.double())
            if self.check(where, provider, loss, x, wanted[provider.oracle]):
                good[name] = loss
                found = counts(loss, x)
                what = "operators" if found.waits is None else "launches"
                self.add(where, name, what, "", found.launches)
                if found.waits is not None:
                    self.add(where, name, "waits", "", found.waits)
                self.add(where, name, "saved", "bytes", found.saved)
                self.add(where, name, "peak", "bytes", found.peak)
        del wanted
        if good:
            _say(f"{case.name} {dtype}: timing")
            self.times(where, good, x)

    def check(self, where: tuple[str, int, int, str], provider: Provider, loss: Loss, x: Inputs,
              wanted: tuple[torch.Tensor, ...]) -> bool:  # fmt: skip
        """The first call: how long it took, and whether its numbers are right."""
        what = f"{where[0]} {where[3]} {provider.name}"
        try:
            seconds, got = first_call(loss, x)
            wrong = measure.error(got, wanted)
            right = wrong <= measure.TOLERANCES[x.logits.dtype]
            if not right:
                _warn(f"{what}: WRONG, off by {wrong:.2g}, not timed")
        except Exception as error:  # of a compiler, say: the others go on
            first = str(error).strip().split("\n")[0]
            _warn(f"{what}: FAILED, {type(error).__name__}: {first}")
            right, seconds, wrong = False, math.nan, math.inf
        self.add(where, provider.name, "agrees", "", float(right))
        self.add(where, provider.name, "error", "relative", wrong)
        self.add(where, provider.name, "first call", "s", seconds)
        return right

    def times(self, where: tuple[str, int, int, str], good: dict[str, Loss], x: Inputs) -> None:
        """By the clock on a CPU; on a GPU by events and graphs, cold and warm."""
        seconds = self.options.seconds
        if self.device.type == "cpu":
            found = {"clock": measure.times(good, x, seconds)}
        else:
            found = {}
            for word, cold in (("cold", True), ("warm", False)):
                found[f"events, {word}"] = measure.times(good, x, seconds / 4, cold=cold)
                found[f"graph, {word}"] = measure.graph_times(good, x, seconds / 12, cold=cold)
        for method, providers in found.items():
            for name, directions in providers.items():
                for direction, sample in directions.items():
                    self.add(where, name, f"{direction}, {method}", results.TIME, sample)

    def steps(self) -> None:
        """A training step of each detector, base and JOL."""
        size, images = 800, 2
        for name in detectors.DETECTORS:
            if time.perf_counter() > self.deadline:
                self.left_out.append(f"step of {name}")
                continue
            _say(f"training steps of {name}")
            found = detectors.step_samples(name, size, images, self.options.device)
            where = (f"step-{name}", images, size, "float32")
            for loss in ("base", "jol"):
                self.add(where, loss, "step", "s", found[loss])
            self.add(where, "jol", "step over base's", "ratio", found["ratio"])
            self.save()

    def add(self, where: tuple[str, int, int, str], provider: str, what: str, unit: str,
            sample: Sample | float) -> None:  # fmt: skip
        """Keep a number."""
        self.rows.append(results.row(self.about, where, provider, what, unit, sample))

    def save(self) -> None:
        """Write what there is."""
        results.write_csv(self.options.out / "results.csv", self.rows)

    def report(self) -> str:
        """Write the CSV, the tables and the plots; return the tables."""
        from bench import plots

        self.save()
        text = results.report(self.rows, self.about, self.left_out)
        (self.options.out / "results.md").write_text(text)
        plots.save_all(self.options.out, self.rows)
        return text


def _say(text: str) -> None:
    """Where we are: a line that the next one replaces, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    """A line that stays."""
    _say("")
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
