"""A run of the benchmark: which provider meets which case, in which order, and what is kept."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.loss import measure, report
from bench.loss.cases import CASES, SWEEP, Case, Name
from bench.loss.inputs import make_inputs
from bench.loss.measure import Sample, Spans, counts, first_call, step, summary
from bench.loss.providers import PROVIDERS, Loss, Provider
from bench.loss.report import Row

PLOTS = ("time.png", "roofline.png", "launches.png")
KEY = ("rcnn-81", "retinanet-80", "large-80")
"""On a GPU compilers, which take most of the time there is, are tuned for these cases alone, and
tried in bfloat16 for them alone; in float16, and for some of the sweep, not at all."""
STEP = {"size": 800, "images": 2}
CACHE = {"cold": True, "warm": False}
"""Whether the L2 cache is flushed before each sample."""
StepSamples = Callable[[str, int, int, str], Mapping[str, Sample]]
"""Detector, side of the images in pixels, images and device → samples of bench.detector_cost."""
Where = tuple[str, int, int, str]
"""Case, N, C, dtype."""


def chosen(case: Case, dtype: str, options: argparse.Namespace) -> Iterator[Provider]:
    """The providers of a case: those asked for, or those worth their time."""
    gpu = options.device == "cuda"
    for name, provider in PROVIDERS.items():
        if options.providers is not None:
            wanted = name in options.providers
        elif provider.asked or (provider.gpu_only and not gpu):
            wanted = False
        elif name == "compile-autotune":
            wanted = dtype == "float32" and case.name in KEY
        elif name == "compile" and gpu:
            wanted = dtype == "float32" and case.name not in SWEEP[1::2]
            wanted = wanted or (dtype == "bfloat16" and case.name in KEY)
        else:
            wanted = True
        if wanted:
            yield provider


class Run:
    """The rows of a run, as they come; the CSV is written after each case."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.about = report.machine(self.device)
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.failures = 0
        self.began = time.perf_counter()
        self.longest = 0.0

    # --- Parts ---------------------------------------------------------------------------------

    def losses(self) -> None:
        """Every case in every dtype; of the sweep float32 alone."""
        cases = [(n, d) for n in self.options.cases if n not in SWEEP for d in self.options.dtypes]
        if "float32" in self.options.dtypes:
            cases += [(n, "float32") for n in self.options.cases if n in SWEEP]
        if cases:
            copy = measure.copy_bandwidth(self.device)
            self.add(("copy", 0, 0, "float32"), "torch", "copy bandwidth", "GB/s", copy)
        for name, dtype in cases:
            self.part(f"{name} {dtype}", partial(self.case, CASES[name], dtype))

    def steps(self, names: Iterable[str], measured: StepSamples) -> None:
        """A training step of each detector, base and JOL."""
        for name in names:
            self.part(f"training steps of {name}", partial(self.training, name, measured))

    def part(self, name: str, measured: Callable[[], None]) -> None:
        """One case, if there is time for one as long as the longest yet; a failure is reported."""
        began = time.perf_counter()
        if began - self.began + self.longest > self.options.limit:
            self.skipped.append(name)
            return
        say(name)
        try:
            measured()
        except Exception as error:  # out of memory, say: the others go on
            self.fail(name, error)
        self.longest = max(self.longest, time.perf_counter() - began)
        report.write_csv(self.options.out / "results.csv", self.rows)

    def inputs(self, case: Any, dtype: str) -> Any:
        """A case's batch."""
        return make_inputs(case, getattr(torch, dtype), str(self.device))

    def chosen(self, case: Any, dtype: str) -> Iterable[Provider]:
        """The providers of a case."""
        return chosen(case, dtype, self.options)

    def complete(
        self, measured: Callable[[], None], prog: str, earlier: Sequence[Row] | None = None
    ) -> int:
        """Measure, then report whatever becomes of it, beside an earlier run's rows.

        Returns the exit status: 0, 1 where numbers are wrong, missing or failed, 130 interrupted.
        """
        status = 0
        try:
            measured()
        except KeyboardInterrupt:
            print(f"{prog}: interrupted; this is what there is", file=sys.stderr)
            status = 130
        print("\n" + self.report())
        if earlier is not None:
            print(f"Against {self.options.compare}: {report.comparison(earlier, self.rows)}")
        if not self.rows:
            print(f"{prog}: nothing was measured", file=sys.stderr)
            status = status or 1
        print(f"written to {self.options.out}")
        return status or (1 if self.failures or any(map(report.failed, self.rows)) else 0)

    # --- One case ------------------------------------------------------------------------------

    def case(self, case: Any, dtype: str) -> None:
        """Check, count, time, and check again."""
        torch._dynamo.reset()  # or the compiler would make shapes dynamic
        where = (case.name, case.rows, case.columns, dtype)
        x = self.inputs(case, dtype)
        made = [(p, loss) for p in self.chosen(case, dtype) if (loss := p.make(case))]
        good, capturable = {}, {}
        for provider, loss, wanted in with_oracles(case, x, made):
            name = provider.name
            say(f"{case.name} {dtype} {name}")
            try:
                seconds, got = first_call(loss, x)
                if not self.agrees(where, name, got, wanted):
                    continue
                self.add(where, name, "first call", "s", seconds)
                if self.count(where, case, name, loss, x) == 0:
                    capturable[name] = loss
                good[name] = loss
            except Exception as error:  # of a compiler, say
                self.fail(f"{case.name} {dtype} {name}", error)
                self.add(where, name, "agrees", "", 0.0)
        say(f"{case.name} {dtype}: timing")
        spans = self.times(good, x) if good else {}
        spans |= self.graph_times(where, capturable, x) if capturable else {}
        rechecked = [(p, loss) for p, loss in made if p.name in good and not p.consumes]
        wrong = {
            p.name
            for p, loss, wanted in with_oracles(case, x, rechecked)
            if not self.agrees(where, p.name, step(loss, x), wanted, again=True)
        }
        for method, providers in spans.items():
            self.keep(where, method, {n: d for n, d in providers.items() if n not in wrong})

    def agrees(self, where: Where, name: str, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...],
               *, again: bool = False) -> bool:  # fmt: skip
        """Note whether a provider's numbers are right; `again`: only if they are no longer."""
        off = measure.error(got, wanted)
        right = off <= measure.TOLERANCES[got[-1].dtype]
        if not right:
            when = " after it was timed" if again else ""
            warn(f"{where[0]} {where[3]} {name}: WRONG, off by {off:.2g}{when}")
        if not again or not right:
            self.add(where, name, "agrees", "", float(right))
            self.add(where, name, "error", "relative", off)
        return right

    def count(self, where: Where, case: Any, name: str, loss: Loss, x: Any) -> int | None:
        """Note launches, waits and memory; returns the waits, None on a CPU."""
        found = counts(loss, x)
        what = "operators" if found.waits is None else "launches"
        self.add(where, name, what, "", found.launches)
        if found.waits is not None:
            self.add(where, name, "waits", "", found.waits)
        self.add(where, name, "saved", "bytes", found.saved)
        self.add(where, name, "peak", "bytes", found.peak)
        return found.waits

    def times(self, good: Mapping[str, Loss], x: Any) -> dict[str, Spans]:
        """By the clock on a CPU; on a GPU by events, cold and warm."""
        seconds = self.options.seconds
        if self.device.type == "cpu":
            return {"clock": measure.times(good, x, seconds)}
        return {
            f"events, {word}": measure.times(good, x, seconds / 4, cold=cold)
            for word, cold in CACHE.items()
        }

    def graph_times(self, where: Where, capturable: Mapping[str, Loss], x: Any) -> dict[str, Spans]:
        """By replays of CUDA graphs, cold and warm; none of what fails or replays other numbers."""
        captured = {}
        for name, loss in capturable.items():
            try:
                captured[name] = measure.capture(loss, x)
            except Exception as error:
                # The end of a capture raises over what made it invalid.
                self.fail(f"{where[0]} {where[3]} {name}, graphs", error.__context__ or error)
        if not captured:
            return {}
        share = self.options.seconds / 12
        found = {
            f"graph, {word}": measure.graph_times(captured, self.device, share, cold=cold)
            for word, cold in CACHE.items()
        }
        for name, graphs in captured.items():
            wanted = step(capturable[name], x)
            off = max(measure.error(gave, wanted) for gave in graphs.gave)
            if off > measure.TOLERANCES[x.leaves[0].dtype]:
                self.failures += 1
                warn(f"{where[0]} {where[3]} {name}, graphs: WRONG, off by {off:.2g}")
                for providers in found.values():
                    del providers[name]
        return found

    def keep(self, where: Where, method: str, spans: Spans) -> None:
        """Medians, and those of the ratios to our own loss, taken in pairs of one round."""
        for name, directions in spans.items():
            for direction, values in directions.items():
                what = f"{direction}, {method}"
                self.add(where, name, what, report.TIME, summary(values))
                if Name.OURS in spans and name != Name.OURS:
                    pairs = zip(values, spans[Name.OURS][direction], strict=True)
                    ratios = summary([a / b for a, b in pairs if b > 0])
                    self.add(where, name, what, report.RATIO, ratios)

    def training(self, name: str, measured: StepSamples) -> None:
        """Steps of a detector."""
        found = measured(name, STEP["size"], STEP["images"], self.options.device)
        where = (f"step-{name}", STEP["images"], STEP["size"], "float32")
        for loss in ("base", "jol"):
            self.add(where, loss, "step", "s", found[loss])
        self.add(where, "jol", "step", report.RATIO, found["ratio"])

    # --- What is kept --------------------------------------------------------------------------

    def add(
        self, where: Where, provider: str, what: str, unit: str, sample: Sample | float
    ) -> None:
        """Keep a number."""
        self.rows.append(report.row(self.about, where, provider, what, unit, sample))

    def fail(self, what: str, error: BaseException) -> None:
        """Say what failed, in a line."""
        self.failures += 1
        first = (str(error).strip() or "no message").splitlines()[0]
        warn(f"{what}: FAILED, {type(error).__name__}: {first}")

    def report(self) -> str:
        """Write the CSV, the tables and the plots; return the tables."""
        from bench.loss import plots

        report.write_csv(self.options.out / "results.csv", self.rows)
        text = report.report(self.rows, self.about, self.skipped)
        (self.options.out / "results.md").write_text(text)
        plots.save_all(self.options.out, self.rows)
        return text


def with_oracles(
    case: Any, x: Any, made: list[tuple[Provider, Loss]]
) -> Iterator[tuple[Provider, Loss, tuple[Tensor, ...]]]:
    """Each provider with what it has to give, in float64; one such result at a time is kept."""
    oracle = None
    wanted: tuple[Tensor, ...] = ()
    for provider, loss in made:
        if provider.oracle is not oracle:
            del wanted
            oracle, wanted = provider.oracle, step(provider.oracle(case), x.double())
        yield provider, loss, wanted


def say(text: str) -> None:
    """Where we are: a line that the next one replaces, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that stays."""
    say("")
    print(text, file=sys.stderr, flush=True)
