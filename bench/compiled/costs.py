"""What each kernel of a case costs on a target: resources, the executed path, memory traffic."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.ahead_of_time import TARGETS, compile_launch
from bench.compiled import cases, dense_cases, executed, path, sass, time_model
from bench.compiled.path import Path
from bench.compiled.variants import resources
from bench.ptx import Execution
from bench.ptx.loss import execute_launch
from bench.ptx.runs import argument, named_arguments
from jolkernels.kernels.launch import Launch

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Executed:
    """What executions of a kernel counted, for all rows of a case.

    Attributes:
        path: of all warps.
        warps: of a program.
        requests: of global memory by warps.
        sectors: of 32 bytes that these moved.
        distinct: different ones of these.
        load_bytes: widest load of the logits, None if it loads none.
    """

    path: Path
    warps: int
    requests: float
    sectors: float
    distinct: float
    load_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """One kernel of a case on a target; `executed` is None where there is no PTX to execute."""

    case: Any
    dtype: str
    target: str
    direction: str
    kernel: str
    programs: int
    registers: int
    spills: int
    shared: int
    executed: Executed | None

    @property
    def elements(self) -> int:
        """Of the case's logits."""
        return self.case.rows * self.case.columns

    @cached_property
    def instructions(self) -> Mapping[str, float]:
        """Warp instructions of the whole case by class."""
        assert self.executed is not None
        return time_model.by_class(self.executed.path)

    @property
    def slots(self) -> float:
        """Issue slots of a thread for each element."""
        return 32 * sum(self.instructions.values()) / self.elements

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Microseconds by bound of the time model."""
        assert self.executed is not None
        return time_model.bounds(self.modelled())

    @property
    def predicted(self) -> float:
        """Microseconds of the launch by the time model."""
        return time_model.predicted([self.modelled()])

    def modelled(self) -> time_model.Kernel:
        """What the time model needs to know."""
        done = self.executed
        assert done is not None
        return time_model.Kernel(
            done.path, self.programs, done.warps, self.registers, self.shared, 32 * done.distinct
        )

    def widths(self, kind: str) -> Counter[int]:
        """Warp instructions of "load" or "store" for the whole case, by bytes of a thread."""
        assert self.executed is not None
        found: Counter[int] = Counter()
        done = self.executed
        for each, count in zip(done.path.program.instructions, done.path.counts, strict=True):
            if each.kind == kind and count:
                found[each.width] += count  # type: ignore[assignment]
        return found

    def lines(self) -> list[tuple[str, float]]:
        """Lines of Python with their issue slots an element, most first."""
        assert self.executed is not None
        found: dict[str, float] = defaultdict(float)
        done = self.executed
        for each, count in zip(done.path.program.instructions, done.path.counts, strict=True):
            where = "no line" if each.source is None else "{}:{}".format(*each.source)
            found[where] += 32 * count / self.elements
        return sorted(found.items(), key=lambda item: -item[1])


def kind_of(case: Any) -> Any:
    """The module that has launches of such a case."""
    return dense_cases if isinstance(case, dense_cases.Case) else cases


def measure(case: Any, dtype: str, target: str) -> list[Cost]:
    """The costs of a case's kernels, executed for samples of the rows."""
    kind = kind_of(case)
    whole = kind.launches(case, kind.unfilled(case, dtype))
    if TARGETS[target].backend == "cuda":
        sizes = kind.sizes(case, whole[0].programs)
        runs = zip(*(sampled(case, dtype, target, n, whole) for n in sizes), strict=True)
        results: list[Executed | None] = [for_all(run, sizes, case.rows) for run in runs]
    else:
        results = [None] * len(whole)
    found = []
    for call, result in zip(whole, results, strict=True):
        kernel = compile_launch(call, TARGETS[target])
        names = {argument(name) for name, _ in named_arguments(call)}
        direction = DIRECTIONS["grad_logits" in names]
        about = case, dtype, target, direction, call.plan.kernel.fn.__name__, call.programs
        found.append(Cost(*about, *resources(kernel), result))
    return found


def sampled(
    case: Any, dtype: str, target: str, rows: int, whole: Sequence[Launch]
) -> list[Executed]:
    """What the kernels do with so many rows: in turn, as each needs what the last has written."""
    found = []
    for call in kind_of(case).sample(case, dtype, rows, whole):
        done = execute_launch(call, target=target)
        found.append(of_execution(done, call))
    return found


def for_all(runs: Sequence[Executed], sizes: Sequence[int], rows: int) -> Executed:
    """What would be done with all rows: what is done for each row grows, the rest does not."""
    if len(runs) == 1:
        return runs[0]
    (small, large), (few, many) = runs, sizes
    share = (rows - few) / (many - few)

    def grown(a: float, b: float) -> float:
        return a + share * (b - a)

    return replace(
        large,
        path=path.weighted([(1 - share, small.path), (share, large.path)]),
        requests=grown(small.requests, large.requests),
        sectors=grown(small.sectors, large.sectors),
        distinct=grown(small.distinct, large.distinct),
    )


def of_execution(done: Execution, call: Launch) -> Executed:
    """The path of the SASS, and the sums of the counts."""
    warps = done.compiled.code.program.threads // 32
    program = sass.disassemble(done.compiled.kernel)
    lines = [line for line in done.counts if line.sectors]
    return Executed(
        path.find(program, done.programs * warps, executed.counted(done.counts)),
        warps,
        requests=sum(line.requests for line in lines),
        sectors=sum(line.sectors for line in lines),
        distinct=done.loaded_sectors + done.stored_sectors,
        load_bytes=executed.widest(done.compiled, call, "logits", "load"),
    )


def unexplained(found: Iterable[Cost]) -> list[str]:
    """Kernels of whose accesses over 1 % are not on the path that was found."""
    names = []
    for cost in found:
        done = cost.executed
        if done is None:
            continue
        off = sum(map(abs, done.path.missed.values()))
        if off > 0.01 * max(done.requests, 1):
            names.append(f"{cost.case.name} {cost.dtype} {cost.target} {cost.kernel}")
    return names
