"""What the compiled kernels cost: tables for people, rows for programs.

    python -m bench compile [--cases NAME ...] [--dtypes fp32 bf16] [--targets sm_90 ...]
                            [--json FILE] [--out FILE.md] [--lines N]

No GPU is needed. Each kernel is compiled for each target; its PTX is executed on the CPU for a
sample of the case's rows (bench/ptx), its SASS counted along the path that these took, and a time
predicted from the counts (bench/compiled/time_model.py).
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton

from bench.ahead_of_time import TARGETS
from bench.compiled import cases, costs, dense_cases, time_model
from bench.compiled.costs import DIRECTIONS, Cost
from bench.compiled.sass import CLASSES
from bench.compiled.variants import DTYPES
from bench.ptx import PtxError
from detectors.utils.argument_types import file_to_write, one_of, positive
from detectors.utils.parser import Parser
from detectors.utils.text_tables import markdown

CASES: dict[str, Any] = {**cases.CASES, **dense_cases.CASES}
MODELLED = "sm_90"
"""The target of the time model."""
Group = Sequence[Cost]
"""The kernels of a case, dtype and target."""
Key = tuple[str, str, str]
Found = Mapping[Key, Group]


def measure(
    names: Iterable[str], dtypes: Iterable[str], targets: Iterable[str]
) -> dict[Key, list[Cost]]:
    """The costs of all kernels by name of the case, dtype and target; says how far it is.

    Raises:
        RuntimeError: the kernels are interpreted.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 leaves no kernels to compile: unset it")
    found = {}
    wanted = [(n, d, t) for n in names for d in dtypes for t in targets]
    for i, (name, dtype, target) in enumerate(wanted, 1):
        print(f"\r{i}/{len(wanted)} {name} {dtype} {target:10}", end="", file=sys.stderr)
        found[name, dtype, target] = costs.measure(CASES[name], dtype, target)
    print(file=sys.stderr)
    return found


def json_rows(found: Found) -> Iterator[dict[str, Any]]:
    """A row for each direction, and for the target of the time model one for both."""
    for (name, dtype, target), group in found.items():
        case = CASES[name]
        head = {
            "case": name,
            "rows": case.rows,
            "columns": case.columns,
            "dtype": dtype,
            "target": target,
        }
        for direction in DIRECTIONS:
            mine = [cost for cost in group if cost.direction == direction]
            executed = [cost for cost in mine if cost.executed is not None]
            loads = [c.executed.load_bytes or 0 for c in executed if c.executed]
            modelled = target == MODELLED
            yield head | {
                "direction": direction,
                "slots_per_element": sum(c.slots for c in executed) if executed else None,
                "registers": max(cost.registers for cost in mine),
                "spills": max(cost.spills for cost in mine),
                "load_bytes": max(loads) if loads else None,
                "predicted_us": sum(c.predicted for c in mine) if modelled else None,
            }
        if target == MODELLED:
            total, floor = total_and_floor(group)
            yield head | {
                "direction": "both",
                "predicted_us": total,
                "floor_us": floor,
                "ratio": total / floor,
                "launches": len(group),
            }


def total_and_floor(group: Group) -> tuple[float, float]:
    """Microseconds predicted for all launches, and of three passes over the logits."""
    case, dtype = group[0].case, DTYPES[group[0].dtype]
    floor = time_model.copy_floor(case.rows, case.columns, dtype.itemsize)
    return sum(cost.predicted for cost in group), floor


def report(found: Found, lines: int = 0) -> str:
    """The tables as Markdown."""
    targets = list(dict.fromkeys(target for _, _, target in found))
    modelled = {key: group for key, group in found.items() if key[2] == MODELLED}
    parts = [f"# Compiled kernels\n\nTriton {triton.__version__}, `python -m bench compile`.\n"]
    if modelled:
        parts += [times(modelled), counts(modelled)]
    parts.append(resources(found, targets))
    if lines:
        parts += [by_line(cost, lines) for group in found.values() for cost in group]
    if names := costs.unexplained(cost for group in found.values() for cost in group):
        parts.append(
            "Not all accesses of these lie on the path counted: " + ", ".join(names) + "\n"
        )
    return "\n".join(parts)


def times(found: Found) -> str:
    """The time model's predictions beside the copy floor."""
    head = ["case", "N x C", "loss", "dtype", *(f"{d}, predicted us" for d in DIRECTIONS),
            "both, predicted us", "copy floor, us", "predicted / floor", "launches"]  # fmt: skip
    rows = []
    for (name, dtype, _), group in found.items():
        total, floor = total_and_floor(group)
        each = [sum(c.predicted for c in group if c.direction == d) for d in DIRECTIONS]
        rows.append([*labels(name), dtype, *map(number, (*each, total, floor)),
                     f"{total / floor:.2f}", str(len(group))])  # fmt: skip
    about = (
        f"{time_model.ASSUMPTIONS}. Copy floor: 3 N C numbers at the same bandwidth, without a "
        "launch."
    )
    return table("Time", about[0].upper() + about[1:], head, rows, 4)


def labels(name: str) -> list[str]:
    """A case's name, size and loss."""
    case = CASES[name]
    return [name, f"{case.rows:,} x {case.columns:,}", case.head.classification]


def counts(found: Found) -> str:
    """Issued instructions of each kernel by class."""
    head = ["case", "dtype", "kernel", "programs x warps", "slots an element", "a row",
            *CLASSES, "loads by bytes", "stores by bytes", "requests", "sectors", "distinct",
            "bound, predicted", "us, predicted"]  # fmt: skip
    rows = []
    for (name, dtype, _), group in found.items():
        for cost in group:
            done, n = cost.executed, cost.case.rows
            assert done is not None
            mix = cost.instructions
            bound = max(cost.bounds, key=lambda name: cost.bounds[name])
            rows.append(
                [
                    name,
                    dtype,
                    cost.kernel,
                    f"{cost.programs:,} x {done.warps}",
                    number(cost.slots),
                    number(sum(mix.values()) / n),
                    *(number(mix[kind] / n) for kind in CLASSES),
                    widths(cost, "load"),
                    widths(cost, "store"),
                    *(number(x / n) for x in (done.requests, done.sectors, done.distinct)),
                    bound,
                    number(cost.predicted),
                ]
            )
    about = (
        f"{MODELLED}, along the executed path. Slots: warp instructions x 32 / (N C). All other "
        "counts are warp instructions a row: in all, by pipe, by bytes a thread; then requests of "
        "global memory by warps, the 32-byte sectors these move, and the different ones of them."
    )
    return table("Instructions and memory", about, head, rows, 3)


def widths(cost: Cost, kind: str) -> str:
    """Accesses a row by bytes of a thread, such as 4: 2.0, 16: 1.0."""
    found = cost.widths(kind)
    return ", ".join(f"{width}: {number(found[width] / cost.case.rows)}" for width in sorted(found))


def resources(found: Found, targets: Sequence[str]) -> str:
    """Registers, spills, shared memory and slots of each kernel on each target."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for (name, dtype, target), group in found.items():
        for cost in group:
            slots = "" if cost.executed is None else f", {number(cost.slots)}"
            cell = f"{cost.registers}/{cost.spills}/{cost.shared}{slots}"
            rows.setdefault((name, dtype, cost.kernel), {})[target] = cell
    about = (
        "Registers a thread / bytes spilled a thread / bytes of shared memory a program, and issue "
        "slots an element where there is SASS."
    )
    head = ["case", "dtype", "kernel", *targets]
    cells = [[*key, *(row.get(t, "") for t in targets)] for key, row in rows.items()]
    return table("Resources", about, head, cells, len(head))


def by_line(cost: Cost, most: int) -> str:
    """The lines of Python that issue most."""
    if cost.executed is None:
        return ""
    title = f"{cost.case.name} {cost.dtype} {cost.target} {cost.kernel}"
    rows = [[where, number(slots)] for where, slots in cost.lines()[:most]]
    return table(title, "By line of Python.", ["line", "slots an element"], rows, 1)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def table(
    title: str, about: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: int
) -> str:
    """A section with a table whose first columns are words."""
    return "\n".join([f"## {title}\n", about, "", *markdown(head, rows, words)]) + "\n"


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog=prog, description=__doc__.split("\n")[0])

    def choice(option: str, names: Iterable[str], chosen: Iterable[str], what: str) -> None:
        names = list(names)
        made.add_argument(
            option,
            nargs="+",
            type=one_of({name: name for name in names}),
            default=list(chosen),
            metavar=option.removeprefix("--").removesuffix("s").upper(),
            help=f"{what}: {', '.join(names)} (default: {', '.join(chosen)})",
        )

    choice("--cases", CASES, CASES, "heads")
    choice("--dtypes", DTYPES, ("fp32", "bf16"), "of logits and boxes")
    choice("--targets", TARGETS, TARGETS, f"GPUs; times are predicted for {MODELLED} alone")
    made.add_argument("--json", metavar="FILE", type=file_to_write, help="also write rows to FILE")
    made.add_argument(
        "--out", metavar="FILE", type=file_to_write, help="also write the tables to FILE"
    )
    made.add_argument(
        "--lines", metavar="N", type=positive, default=0, help="also N lines of each kernel"
    )
    return made


def write(found: Found, text: str, tables: Path | None, rows: Path | None) -> None:
    """Write the report and its rows to files."""
    for path in filter(None, (tables, rows)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if tables:
        tables.write_text(text)
    if rows:
        rows.write_text(json.dumps(list(json_rows(found)), indent=1) + "\n")


def main(arguments: Sequence[str], prog: str) -> int:
    """Compile, execute, count, print and write; 0 done, 1 what fails, 2 unusable arguments."""
    options = parser(prog).parse_args(arguments)
    try:
        found = measure(options.cases, options.dtypes, options.targets)
    except PtxError as error:
        print(f"\n{prog}: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    text = report(found, options.lines)
    print(text, end="")
    try:
        write(found, text, options.out, options.json)
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0
