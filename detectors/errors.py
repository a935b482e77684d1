"""What ends a command: each error carries the exit status it ends with."""

import errno

_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""What PyTorch, its CPU allocator, C++ and CUDA's libraries say in a RuntimeError."""
_CPU = "or, on a GPU, --device cpu"
_LIGHTER = {
    "train": "a smaller --batch-size, --crop or --image-size",
    "eval": f"a smaller --detections, smaller images, {_CPU}",
    "predict": f"a smaller --batch-size or --detections, smaller images, {_CPU}",
    "export": "a smaller --image-size",
    "figure": f"fewer --images, smaller ones, {_CPU}",
}
"""What takes less memory, by command."""


class JolError(Exception):
    """What `jol` reports in a line instead of a traceback."""

    exit_status = 1
    """1: failed while running; 2: unusable arguments or data."""
    everywhere = False
    """Whether every rank raises it, and one has reported it already."""


class Unusable(JolError, ValueError):
    """Arguments that cannot be used together, or not on this machine."""

    exit_status = 2


class DataError(JolError, ValueError):
    """Unusable data. The message names the file, the annotation or image id, and the fault."""

    exit_status = 2


class RunError(JolError, ValueError):
    """A folder or file that cannot be used as the run it should hold."""

    exit_status = 2


class TrainingError(JolError, RuntimeError):
    """Training cannot go on; the message names the step and the images."""


class LoadingError(TrainingError):
    """Loading processes bring no batch; the message says why, and what to do."""


class BadSteps(TrainingError):
    """More bad steps in a row than allowed."""

    everywhere = True


class BadEvaluation(TrainingError):
    """An image to evaluate on cannot be read; what was learnt is kept."""

    everywhere = True


class Stopped(TrainingError):
    """A signal came; the run can be resumed."""

    everywhere = True


def means_no_memory(error: Exception) -> bool:
    """Whether memory did not suffice, the computer's or the GPU's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # of a library that is larger than what is left
        return "failed to map segment" in str(error)
    words = isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)
    return isinstance(error, MemoryError) or words


def out_of_memory(command: str) -> str:
    """What a command says of that, and what helps."""
    return f"out of memory; wanted {_LIGHTER.get(command, 'smaller data or more memory')}"
