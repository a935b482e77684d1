"""The batches of a run's steps, whatever happens to images and to the processes that load them."""

from collections.abc import Callable, Generator, Iterator

from detectors.data.batches import Batch
from detectors.errors import DataError, LoadingError, TrainingError

DEAD = "DataLoader worker"
"""How torch's message of a loading process that died begins."""


def feed(
    load: Callable[[int], Iterator[Batch]],
    start: int,
    steps: int,
    restarts: int,
    note: Callable[[str], None],
    leaving: Callable[[], object],
) -> Generator[Batch | str]:
    """For each of the steps start, start + 1, ..., steps - 1 its batch, or why there is none.

    Args:
        load: step → the batches from this step on.
        start: the first step.
        steps: one more than the last.
        restarts: how often in a row loading processes that died are started again, which changes
            no batch.
        note: called with a line for each restart.
        leaving: whether the run is about to stop: what stops it has reached the loading processes
            too, so that they died is the reason why there is no batch.

    Raises:
        TrainingError: a loading process died once more, or all of them are stuck or cannot hand
            their batches over, which starting them again would not change.
    """
    step, died = start, 0
    while step < steps:
        dead: Exception | None = None
        lost: LoadingError | None = None
        try:
            for batch in load(step):
                died = 0
                step += 1
                yield batch
            return
        except DataError as error:
            reason = str(error)
        except LoadingError as error:
            reason, lost = str(error), error
        except (RuntimeError, EOFError, OSError) as error:
            if not _means_dead(error):
                raise
            reason, dead = f"{DEAD} died", error
            if isinstance(error, RuntimeError):
                reason = " ".join(str(error).split())
        if (dead or lost) and leaving():
            yield reason
            return
        if lost:
            raise TrainingError(f"step {step + 1}: {reason}") from lost
        if dead is None:
            step += 1
            yield reason
        elif died < restarts:
            died += 1
            note(f"step {step + 1}: {reason}; loading processes started again")
        else:
            raise TrainingError(f"step {step + 1}: {reason}") from dead


def _means_dead(error: Exception) -> bool:
    """Whether a loading process died: torch says so, or it left a batch half handed over."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(DEAD)
    # A connection's errors name no file; those of a loading process's own begin with "Caught".
    mine = getattr(error, "filename", None) is not None or str(error).startswith("Caught")
    return not mine and isinstance(error, EOFError | ConnectionError | FileNotFoundError)
