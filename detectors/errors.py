"""What ends a command: each error carries the exit status it ends with."""


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
