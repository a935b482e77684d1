"""What a run of the benchmark found: a CSV a machine reads, tables that people do.

A row is one number: which case and provider, what was measured, its median and spread, and on what
it was measured. Ratios and fractions are computed from rows, never stored.
"""

import csv
import dataclasses
import datetime
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.loss.cases import Name
from bench.loss.measure import Sample
from detectors.utils.text_tables import markdown

TIME, RATIO = "ms", "ratio to jolkernels"


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        rows, columns: N and C of a case; for a training step images and their side in pixels.
        measure: what was measured, such as "both, clock" or "launches".
        median, low, high: with the 20 % and 80 % quantiles, in `unit`.
        count: samples.
        device, machine, python, torch, triton, commit, date: on what, with what, when.
    """

    case: str
    rows: int
    columns: int
    dtype: str
    provider: str
    measure: str
    unit: str
    median: float
    low: float
    high: float
    count: int
    device: str
    machine: str
    python: str
    torch: str
    triton: str
    commit: str
    date: str

    @property
    def key(self) -> tuple[str, ...]:
        """What two files have to share for their numbers to be compared."""
        return self.case, self.dtype, self.provider, self.measure, self.unit, self.device


FIELDS = [f.name for f in dataclasses.fields(Row)]
MACHINE = ("device", "machine", "python", "torch", "triton", "commit", "date")


def machine(device: torch.device) -> dict[str, str]:
    """The columns that are the same in all rows of a run."""
    try:
        import triton

        compiler = triton.__version__
    except ImportError:
        compiler = ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "machine": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": compiler,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """The CPU's name, its vector instructions, which that may leave open, and threads."""
    name = platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        models = [
            x.split(":")[1].strip() for x in cpu.read_text().splitlines() if "model name" in x
        ]
        name = models[0] if models else name
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {vectors}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def _commit() -> str:
    """The commit of the tree this file is in, with a plus where files differ from it.

    Nothing for an installed package, though it may lie within the tree of something else.
    """
    here = Path(__file__)
    try:
        _git(here, "ls-files", "--error-unmatch", here.name)
        return _git(here, "describe", "--always", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(file: Path, *arguments: str) -> str:
    command = ["git", "-C", str(file.parent), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


def row(about: dict[str, str], where: tuple[str, int, int, str], provider: str, measure: str,
        unit: str, sample: Sample | float) -> Row:  # fmt: skip
    """A row of a (case, rows, columns, dtype)."""
    if not isinstance(sample, Sample):
        sample = Sample(float(sample), float(sample), float(sample), 1)
    numbers = (sample.median, sample.low, sample.high, sample.count)
    return Row(*where, provider, measure, unit, *numbers, *(about[name] for name in MACHINE))


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """One line a row, floats in full."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(dataclasses.astuple(r) for r in rows)


def read_csv(path: Path) -> list[Row]:
    """What write_csv wrote.

    Raises:
        ValueError: no such file, or not one of ours.
    """
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        kinds = {f.name: f.type for f in dataclasses.fields(Row)}
        return [
            Row(**{name: kinds[name](line[name]) for name in FIELDS})  # type: ignore[operator]
            for line in lines
        ]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no table of this benchmark: {error}") from error


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    return "\n".join(markdown(head, lines)) + "\n"


def number(value: float) -> str:
    """Three digits, and whole numbers whole."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def marked(text: str, r: Row) -> str:
    """The text, marked as noise if 20 to 80 % of the samples are wider apart than half the median.

    Such a number says what else the machine did.
    """
    return f"{text} (noise)" if r.high - r.low > abs(r.median) / 2 else text


def measures(rows: Iterable[Row]) -> list[str]:
    """The measures there are, in their order."""
    return list(dict.fromkeys(r.measure for r in rows))


def speed_table(rows: Sequence[Row], measure: str) -> str:
    """A line a case and dtype: milliseconds of our loss, and the others' times over ours.

    Ratios are medians over pairs taken in one round, with half the width of their 20 to 80 %
    range. What is noise is marked. A provider that failed its check has "wrong" in its cell, and
    without our own time there are no ratios.
    """
    providers = list(dict.fromkeys(r.provider for r in rows if r.measure == "agrees"))
    places = list(dict.fromkeys((r.case, r.rows, r.columns, r.dtype) for r in rows))
    found = {(r.case, r.dtype, r.provider, r.unit): r for r in rows if r.measure == measure}
    wrong = {(r.case, r.dtype, r.provider) for r in rows if failed(r)}
    others = [p for p in providers if p != Name.OURS]
    lines = []
    for case, n, columns, dtype in places:
        mine = found.get((case, dtype, Name.OURS, TIME))
        if mine is None and (case, dtype, Name.OURS) not in wrong:
            continue
        cells = []
        for other in others:
            ratio = found.get((case, dtype, other, RATIO))
            if (case, dtype, other) in wrong:
                cells.append("wrong")
            elif mine is None or ratio is None:
                cells.append("")
            else:
                spread = number((ratio.high - ratio.low) / 2)
                cells.append(marked(f"{number(ratio.median)} ± {spread}", ratio))
        first = "wrong" if mine is None else marked(number(mine.median), mine)
        lines.append([case, f"{n:,}", f"{columns:,}", dtype, first, *cells])
    return table(["case", "N", "C", "dtype", f"{Name.OURS}, ms", *others], lines) if lines else ""


def report(
    rows: Sequence[Row], about: dict[str, str], skipped: Sequence[str], command: str = "bench"
) -> str:
    """All tables of a run of `python -m command`, as Markdown."""
    words = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "triton", "commit"))
    text = (
        f"# Benchmark on {about['machine']}\n\n`python -m {command}`, {about['date']}, {words}.\n"
    )
    for r in rows:
        if r.measure == "copy bandwidth":
            text += f"Copy bandwidth {r.median:.1f} GB/s.\n"
    for measure in measures(rows):
        if measure.startswith(("forward,", "backward,", "both,")):
            found = speed_table(rows, measure)
            title = f"\n## {measure}\n\nMedian time of {Name.OURS}, and the others' over it.\n\n"
            text += title + found if found else ""
    titles = {
        "operators": "Operators of PyTorch, forward and backward",
        "launches": "Kernels, copies and fills, forward and backward",
        "waits": "Times the host waits for the GPU",
        "peak": "Largest number of bytes allocated besides the inputs; gradients are among them",
        "saved": "Bytes kept between forward and backward besides the inputs",
        "first call": "Seconds of the first forward and backward, compilation included",
        "bytes": "Bytes that operators read and write by a model (bench/dense/traffic.py)",
        "error": "Largest relative error of loss and gradients against float64",
    }
    for measure, title in titles.items():
        found = count_table(rows, measure)
        text += f"\n## {title}\n\n{found}" if found else ""
    text += _steps(rows) + _bandwidth(rows)
    if skipped:
        text += f"\nNot measured, out of time: {', '.join(skipped)}.\n"
    return text


def _steps(rows: Sequence[Row]) -> str:
    """Training steps."""
    found: dict[str, dict[str, Row]] = {}
    for r in rows:
        if r.measure == "step":
            found.setdefault(r.case.removeprefix("step-"), {})[f"{r.provider} {r.unit}"] = r
    lines = [
        [
            name,
            marked(number(cells["base s"].median), cells["base s"]),
            marked(number(cells["jol s"].median), cells["jol s"]),
            marked(f"{cells[f'jol {RATIO}'].median:.3f}", cells[f"jol {RATIO}"]),
            f"{cells[f'jol {RATIO}'].low:.3f} to {cells[f'jol {RATIO}'].high:.3f}",
        ]
        for name, cells in found.items()
    ]
    if not lines:
        return ""
    one = next(r for r in rows if r.measure == "step")
    head = ["detector", "base, s", "JOL, s", "JOL / base", "20 to 80 % of the pairs"]
    title = f"A training step, preset paper, {one.rows} images of {one.columns} x {one.columns}"
    return f"\n## {title}\n\n{table(head, lines)}"


def _bandwidth(rows: Sequence[Row]) -> str:
    """Our share of the copy bandwidth by the 3 N C model."""
    copy = [r.median for r in rows if r.measure == "copy bandwidth"]
    best = best_measure(rows)
    mine = [r for r in rows if (r.provider, r.measure, r.unit) == (Name.OURS, best, TIME)]
    if not copy or not mine:
        return ""
    lines = [
        [r.case, r.dtype, marked(number(share), r), number(100 * share / copy[0])]
        for r in mine
        for share in [model_bytes(r) / r.median / 1e6]
    ]
    head = ["case", "dtype", "GB/s by 3 N C", "% of copy"]
    return f"\n## {Name.OURS} and the copy bandwidth ({mine[0].measure})\n\n{table(head, lines)}"


def best_measure(rows: Sequence[Row]) -> str:
    """The time that shows the kernels most plainly."""
    there = measures(rows)
    return next(
        (m for m in ("both, graph, cold", "both, events, cold") if m in there), "both, clock"
    )


def shared_measure(rows: Sequence[Row]) -> str:
    """The time that every provider has."""
    return "both, events, cold" if "both, events, cold" in measures(rows) else "both, clock"


def model_bytes(r: Row) -> int:
    """Logits read forward; read, and their gradient written, backward."""
    return 3 * r.rows * r.columns * getattr(torch, r.dtype).itemsize


def failed(r: Row) -> bool:
    """Whether the row says that a provider's numbers are wrong."""
    return r.measure == "agrees" and r.median == 0


def count_table(rows: Sequence[Row], measure: str) -> str:
    """A line a case and dtype, a column a provider, of one measure."""
    chosen = [r for r in rows if r.measure == measure]
    providers = list(dict.fromkeys(r.provider for r in chosen))
    found = {(r.case, r.dtype, r.provider): number(r.median) for r in chosen}
    places = list(dict.fromkeys((r.case, r.dtype) for r in chosen))
    lines = [[*p, *(found.get((*p, name), "") for name in providers)] for p in places]
    return table(["case", "dtype", *providers], lines) if lines else ""


def comparison(old: Sequence[Row], new: Sequence[Row]) -> str:
    """What changed between two files: medians outside of each other's 20 to 80 % range.

    Numbers measured once have no range (errors, first calls): theirs have to differ by a tenth.
    """
    before, after = {r.key: r for r in old}, {r.key: r for r in new}
    shared = [key for key in after if key in before]
    lines = []
    for was, now in ((before[key], after[key]) for key in shared):
        if _similar(was, now):
            continue
        ratio = f"{now.median / was.median:.2f}" if was.median else ""
        cells = (number(was.median), number(now.median), now.unit, ratio)
        lines.append([f"{now.case} {now.dtype}", now.provider, now.measure, *cells])
    words = f"{len(shared)} numbers in both, {len(shared) - len(lines)} of them unchanged.\n"
    for name, some, other in (("before", before, after), ("now", after, before)):
        alone = sorted({f"{r.case} {r.provider}" for key, r in some.items() if key not in other})
        if alone:
            words += f"Only {name}: {', '.join(alone)}.\n"
    for name in ("device", "machine", "python", "torch", "triton", "commit"):
        on, here = ({getattr(r, name) for r in rows} for rows in (old, new))
        if on != here:
            words += f"{name}: {_list(on)} before, {_list(here)} now.\n"
    head = ["case", "provider", "measure", "before", "now", "unit", "now / before"]
    return words + ("\n" + table(head, lines) if lines else "")


def _list(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or "nothing"


def _similar(was: Row, now: Row) -> bool:
    if not (math.isfinite(was.median) and math.isfinite(now.median)):
        return math.isfinite(was.median) == math.isfinite(now.median)
    if was.count == 1 and now.count == 1:
        return math.isclose(was.median, now.median, rel_tol=0.1)
    return was.low <= now.median <= was.high or now.low <= was.median <= now.high
