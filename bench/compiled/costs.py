"""What each kernel of a case costs on a target: resources, the executed path, memory traffic."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bench.ahead_of_time import TARGETS, compile_launch
from bench.compiled import cases, executed, latency, path, sass, time_model
from bench.compiled.path import Path
from bench.compiled.variants import resources
from bench.loss.cases import Case
from bench.ptx import Execution, compiled, execute
from bench.ptx.loss import outputs
from bench.ptx.runs import named_arguments
from jolkernels.kernels.launch import Launch

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Executed:
    """What an execution of a kernel counted.

    Attributes:
        path: of the warps that ran.
        scale: of the case's rows over those that they read.
        warps: of a program.
        requests: of global memory by warps, of the whole case.
        sectors: of 32 bytes that these moved.
        distinct: different ones of these.
        load_bytes: widest load of the logits, None if it loads none.
    """

    path: Path
    scale: float
    warps: int
    requests: float
    sectors: float
    distinct: float
    load_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """One kernel of a case on a target; `executed` is None where there is no PTX to execute."""

    case: Case
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
        found = time_model.by_class(self.executed.path)
        return {name: count * self.executed.scale for name, count in found.items()}

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
        # What a finish reads has just been written, and lies in the L2 cache.
        from_dram = done.load_bytes is not None
        return time_model.Kernel(
            done.path, done.scale, self.programs, done.warps, self.registers, self.shared,
            latency.DRAM if from_dram else latency.L2, 32 * done.distinct,
        )  # fmt: skip

    def widths(self, kind: str) -> Counter[int]:
        """Warp instructions of "load" or "store" for the whole case, by bytes of a thread."""
        assert self.executed is not None
        found: Counter[int] = Counter()
        done = self.executed
        for each, count in zip(done.path.program.instructions, done.path.counts, strict=True):
            if each.kind == kind and count:
                found[each.width] += count * done.scale  # type: ignore[assignment]
        return found

    def lines(self) -> list[tuple[str, float]]:
        """Lines of Python with their issue slots an element, most first."""
        assert self.executed is not None
        found: dict[str, float] = defaultdict(float)
        done = self.executed
        for each, count in zip(done.path.program.instructions, done.path.counts, strict=True):
            where = "no line" if each.source is None else "{}:{}".format(*each.source)
            found[where] += 32 * count * done.scale / self.elements
        return sorted(found.items(), key=lambda item: -item[1])


def measure(case: Case, dtype: str, target: str) -> list[Cost]:
    """The costs of a case's kernels.

    Those that read the logits are executed for a sample of the rows, which the counts of all rows
    are multiples of. The others are executed as for all rows: their loops go over what programs
    left.
    """
    x = cases.sample(case, dtype)
    whole = cases.launches(case, cases.unfilled(case, dtype))
    found = []
    for full, part in zip(whole, cases.launches(case, x), strict=True):
        names = dict(named_arguments(full))
        if TARGETS[target].backend == "cuda":
            # In turn, as each needs what the last has written.
            done, scale = run(part, target), case.rows / len(x.labels)
            if "logits" not in names and scale > 1:
                done, scale = run(emptied(full), target), 1.0
            kernel, result = done.compiled.kernel, of_execution(done, full, scale)
        else:
            kernel, result = compile_launch(full, TARGETS[target]), None
        direction = DIRECTIONS["grad_logits" in names]
        about = case, dtype, target, direction, full.kernel.fn.__name__, full.programs
        found.append(Cost(*about, *resources(kernel), result))
    return found


def run(call: Launch, target: str) -> Execution:
    """Execute a launch."""
    return execute(compiled(call, target), call, outputs(call))


def emptied(call: Launch) -> Launch:
    """The launch, after zeroing its tensors."""
    for value in call.arguments:
        if isinstance(value, Tensor):
            value.zero_()
    return call


def of_execution(done: Execution, call: Launch, scale: float) -> Executed:
    """The path of the SASS, and the sums of the counts."""
    warps = done.compiled.code.program.threads // 32
    program = sass.disassemble(done.compiled.kernel)
    lines = [line for line in done.counts if line.sectors]
    return Executed(
        path.find(program, done.programs * warps, executed.counted(done.counts)),
        scale,
        warps,
        requests=scale * sum(line.requests for line in lines),
        sectors=scale * sum(line.sectors for line in lines),
        distinct=scale * (done.loaded_sectors + done.stored_sectors),
        load_bytes=executed.widest_load(done, call, "logits"),
    )


def unexplained(found: Iterable[Cost]) -> list[str]:
    """Kernels of whose accesses over 1 % are not on the path that was found."""
    names = []
    for cost in found:
        done = cost.executed
        if done is None:
            continue
        off = sum(map(abs, done.path.missed.values())) * done.scale
        if off > 0.01 * max(done.requests, 1):
            names.append(f"{cost.case.name} {cost.dtype} {cost.target} {cost.kernel}")
    return names
