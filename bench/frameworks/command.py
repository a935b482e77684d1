"""The losses of other frameworks' models, and JOL in their place, on the CPU.

    python -m bench frameworks [--out DIR] [--cases torchvision ultralytics/yolo26n ...]

Writes results.csv and results.md under --out, of each model (bench/frameworks/cases.py): the calls
and host waits of a forward and a backward by the names of operators, and milliseconds, both losses
in turn. Without weighting ours has to be the model's own, or there are no times. A framework that
is not installed is left out.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.frameworks import report
from bench.frameworks.calls import Found, calls_of, replaced
from bench.frameworks.cases import CASES, FRAMEWORKS, Case, Name, Outputs
from bench.loss import measure
from bench.loss.options import add_options, empty, settle
from bench.loss.providers import Loss
from bench.loss.report import TIME, write_csv
from bench.loss.run import Run, Where, warn
from detectors.utils.parser import Parser

COMPARED = (Name.BASE, Name.OURS)
TOLERANCES = {"loss": 1e-5, "gradients": 1e-4}
"""Largest relative error in float32, in which gradients of focal losses have five digits."""


class FrameworksRun(Run):
    """A run over models."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        wanted = dict.fromkeys(CASES[name][0] for name in options.cases)
        self.missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        for name in self.missing:
            warn(f"{name}: left out, not installed")
        self.about |= {
            "frameworks": ", ".join(
                f"{name} {importlib.metadata.version(name)}"
                for name in wanted
                if name not in self.missing
            )
        }

    def losses(self) -> None:
        """Every model of the frameworks that are installed."""
        for name in self.options.cases:
            if CASES[name][0] not in self.missing:
                self.part(name, partial(self.model, name))

    def model(self, name: str) -> None:
        """Check, count and time."""
        framework, model = CASES[name]
        case: Case = importlib.import_module(f"bench.frameworks.{framework}").make(model)
        where = (name, case.rows, case.columns, "float32")
        if not self.same(where, case):
            return
        for loss in COMPARED:
            found = calls_of(case.losses[loss], case.outputs, case.assigner)
            self.counts(where, loss, "", found.loss)
            self.counts(where, loss, "assigner ", found.assigner)
        losses: dict[str, Loss] = {loss: case.losses[loss] for loss in COMPARED}
        self.keep(where, "clock", measure.times(losses, case.outputs, self.options.seconds))
        if case.assigner:
            spent = assigner_times(case, self.options.seconds)
            self.add(where, Name.BASE, "assigner", TIME, measure.summary(spent))

    def same(self, where: Where, case: Case) -> bool:
        """Note whether our loss is the model's own without weighting, and its gradients."""
        wanted, got = (step(case.losses[n], case.outputs) for n in (Name.BASE, Name.NONE))
        parts = {"loss": (got[:1], wanted[:1]), "gradients": (got[1:], wanted[1:])}
        off = {what: measure.error(*pair) for what, pair in parts.items()}
        for what, value in off.items():
            self.add(where, Name.NONE, f"error of the {what}", "relative", value)
        wrong = [f"{what} off by {off[what]:.2g}" for what in off if off[what] > TOLERANCES[what]]
        if wrong:
            warn(f"{where[0]}: WRONG without weighting, {', '.join(wrong)}")
        self.add(where, Name.NONE, "agrees", "", float(not wrong))
        return not wrong

    def counts(self, where: Where, loss: str, whose: str, found: Found) -> None:
        """Note calls and waits, together and by operator."""
        for what, counter in (("calls", found.calls), ("waits", found.waits)):
            self.add(where, loss, f"{whose}{what}", "", counter.total())
            for operator, count in counter.most_common():
                self.add(where, loss, f"{whose}{what}: {operator}", "", count)

    def report(self) -> str:
        """Write the CSV and the tables; return the tables."""
        write_csv(self.options.out / "results.csv", self.rows)
        text = report.report(self.rows, self.about, self.missing, self.skipped)
        (self.options.out / "results.md").write_text(text)
        return text


def step(loss: Loss, x: Outputs) -> tuple[Tensor, ...]:
    """The loss and the gradients of all outputs, 0 of those that it does not read."""
    total = loss(x)
    gradients = torch.autograd.grad(total, x.leaves, materialize_grads=True)
    return total.detach(), *gradients


def assigner_times(case: Case, seconds: float) -> list[float]:
    """Milliseconds that the model's own loss spends in its assigner, step by step."""
    spent: list[float] = []

    def loss(x: Outputs) -> Tensor:
        spent.append(0.0)
        return case.losses[Name.BASE](x)

    def clocked(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[-1] += 1e3 * (time.perf_counter() - began)

        return call

    with replaced(case.assigner, clocked):
        measure.times({Name.BASE: loss}, case.outputs, seconds / 2)
    return spent[measure.WARM_UP :]


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog=prog, description=__doc__.split("\n")[0])
    add_options(made, "runs/frameworks", [*FRAMEWORKS, *CASES], threads=1)
    made.set_defaults(device="cpu")
    return made


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, write, print; 0 done, 1 wrong numbers or a failure, 2 unusable arguments."""
    options = parser(prog).parse_args(arguments)
    options.cases = [n for n in CASES if n in options.cases or CASES[n][0] in options.cases]
    try:
        settle(options)
        empty(options.out)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    run = FrameworksRun(options)
    return run.complete(run.losses, prog)
