"""From a dense head's outputs to their gradients: where they lie, or flattened first.

    python -m bench dense [--out DIR] [--cases retinanet-8 ...] [--formats channels_last ...]
                          [--dtypes float32 ...] [--providers jolkernels flat ...]

Writes results.csv and results.md under --out: milliseconds, peak memory, bytes by a model, and the
error of each provider (bench/dense/providers.py) against the flat entrance in float64.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench.dense.cases import CASES, FORMATS, Case, Name
from bench.dense.inputs import Outputs, make_inputs
from bench.dense.providers import PROVIDERS
from bench.dense.traffic import bytes_moved
from bench.loss import measure, report
from bench.loss.cases import DTYPES
from bench.loss.options import add_options, add_providers, empty, empty_caches, settle
from bench.loss.providers import Loss, Provider
from bench.loss.run import Run, Where, warn
from detectors.utils.argument_types import one_of
from detectors.utils.parser import Parser

OURS = (Name.DENSE, Name.FLAT)
HELD = {True: 40, False: 100}
"""Bytes an element of the logits that a case needs at most: with our providers alone, with all."""


class DenseRun(Run):
    """A run over heads."""

    def losses(self) -> None:
        """Every case in every memory format and dtype."""
        copy = measure.copy_bandwidth(self.device)
        self.add(("copy", 0, 0, "float32"), "torch", "copy bandwidth", "GB/s", copy)
        for name in self.options.cases:
            for memory_format in self.options.formats:
                case = CASES[name].laid_out(memory_format)
                for dtype in self.options.dtypes:
                    what = f"{case.name} {dtype}"
                    if self.fits(case, what):
                        self.part(what, partial(self.case, case, dtype))

    def fits(self, case: Case, what: str) -> bool:
        """Whether there is memory for a case; a line if there is not."""
        ours = set(self.options.providers or Name) <= set(OURS)
        wanted, there = HELD[ours] * case.rows * case.columns, free(self.device)
        if wanted > there:
            numbers = f"it may take {wanted / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are free"
            warn(f"{what}: left out, {numbers}")
        return wanted <= there

    def inputs(self, case: Case, dtype: str) -> Outputs:
        """A case's batch."""
        return make_inputs(case, getattr(torch, dtype), str(self.device))

    def chosen(self, case: Case, dtype: str) -> Iterable[Provider]:
        """Those asked for, or all."""
        wanted = self.options.providers
        return [p for p in PROVIDERS.values() if wanted is None or p.name in wanted]

    def count(self, where: Where, case: Case, name: str, loss: Loss, x: Outputs) -> int | None:
        """Bytes by the model, too."""
        moved = bytes_moved(name, case, loss, x)
        if moved is not None:
            self.add(where, name, "bytes", "bytes", moved)
        return super().count(where, case, name, loss, x)

    def report(self) -> str:
        """Write the CSV and the tables; return the tables."""
        report.write_csv(self.options.out / "results.csv", self.rows)
        text = report.report(self.rows, self.about, self.skipped, "bench dense")
        (self.options.out / "results.md").write_text(text)
        return text


def free(device: torch.device) -> int:
    """Bytes of memory that can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    (there,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return 1024 * there


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog=prog, description=__doc__.split("\n")[0])
    add_options(made, "runs/dense", CASES)
    add_providers(made, Name, "all")
    for option, names, chosen, what in (
        ("--formats", FORMATS, list(FORMATS), "memory formats of the levels"),
        ("--dtypes", DTYPES, ["float32", "bfloat16"], "of the levels"),
    ):
        made.add_argument(
            option,
            nargs="+",
            type=one_of({name: name for name in names}),
            default=chosen,
            metavar=option.removeprefix("--").removesuffix("s").upper(),
            help=f"{what}: {', '.join(names)} (default: {', '.join(chosen)})",
        )
    return made


def main(arguments: Sequence[str], prog: str) -> int:
    """Measure, write, print; 0 done, 1 wrong numbers or a failure, 2 unusable arguments."""
    options = parser(prog).parse_args(arguments)
    try:
        settle(options)
        empty(options.out)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    with empty_caches():
        run = DenseRun(options)
        return run.complete(run.losses, prog)
