"""A machine that runs compiled Triton kernels, as PTX, on the CPU: checked, and counted.

    from bench.ptx import compiled_kernels, run

    execution = run(launch, outputs=("row_terms", "partial_sums"))  # of a Launch
    with compiled_kernels() as executions:  # in place of the CPU's passes
        loss = JointOptimizationLoss()(**batch)

`run` compiles the launch for sm_90 (or `target="sm_80"`, "sm_100"), which needs no GPU, and runs
that on the launch's tensors in place. It raises PtxError, one line with the instruction, its line
of Python, the program and the thread, for

- an opcode, a modifier or an operand that the machine does not know (before anything runs);
- an access that is not of an element of a tensor argument, or not aligned to its width;
- a store to an argument that is not among the outputs, an output that overlaps another argument;
- an element of an output that is read before it is written, or never written;
- shared memory that is read before it is written, or beyond its end;
- a race: two threads of which one writes, without a barrier or an acquire-release chain between;
- a warp that does not reach a barrier at which others wait;
- an atomic sum of floats, whose result depends on the order of the programs.

What a run counts is `execution.counts`, an iterable with, for each PTX instruction in the order of
the code, a `Line`: its `instruction` (`.opcode`, `.source`: the line of Python and of the calls
around it), how often warps issued it (`warps`), for how many lanes it took effect (`lanes`), and of
memory accesses `requests`, `width` (bytes a lane) and `sectors` (of 32 bytes). Also
`execution.programs`, `.loaded_sectors`, `.stored_sectors` (different ones) and `.compiled.kernel`,
Triton's CompiledKernel with the same code as a cubin.

program.py reads the text. arithmetic.py, with types.py, floats.py, integers.py and conversions.py,
says what opcodes compute; operands.py, access.py and warps.py what they do with the registers,
memory and lanes of chunk.py; decode.py makes a program ready with these. machine.py runs it, in the
order of flow.py; memory.py, shared.py and races.py check; counts.py counts. runs.py joins that to
launches, loss.py to the loss.
"""

from bench.ptx.counts import Counts, Line
from bench.ptx.errors import PtxError
from bench.ptx.loss import compiled_kernels
from bench.ptx.runs import (
    Compiled,
    Execution,
    compiled,
    execute,
    in_all_orders,
    run,
)

__all__ = [
    "Compiled",
    "Counts",
    "Execution",
    "Line",
    "PtxError",
    "compiled",
    "compiled_kernels",
    "execute",
    "in_all_orders",
    "run",
]
