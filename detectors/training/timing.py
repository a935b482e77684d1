"""How long a step and an evaluated image take on this machine, and how large checkpoints are.

Measured in a process of its own: what that leaves on a GPU would be missing to the runs after it.
"""

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from detectors.errors import JolError, TrainingError, Unusable
from detectors.training.settings import TrainSettings

MOST, SECONDS = 12, 30.0
"""Steps or images of a measurement at most, and the time after which none is begun."""
LEAST = 2
"""Steps or images at least; the first is not counted."""


@dataclass(frozen=True)
class Speed:
    """What a run of these settings takes.

    Attributes:
        step: median seconds of a training step, from loading the data to the update.
        image: median seconds of detecting on an image of the test split.
        checkpoint: bytes of last.pt and of previous.pt: weights and momentum.
        weights: bytes of best.pt.
        device: name of what it was measured on.
    """

    step: float
    image: float
    checkpoint: int
    weights: int
    device: str

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but the name."""
        return self.step, self.image, self.checkpoint, self.weights


def measure(settings: Sequence[TrainSettings], dataset: str, root: Path) -> list[Speed]:
    """Train and detect briefly with each of these settings, on the named data set in `root`.

    Raises:
        Unusable: a detector that cannot be built.
        TrainingError: the process died.
        RuntimeError: of PyTorch, such as for want of memory.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    loading = get_start_method()
    child = context.Process(target=_answer, args=(theirs, loading, settings, dataset, root))
    child.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError as error:
        raise TrainingError("the process that times the detectors died") from error
    finally:
        child.kill()
        child.join()
    if isinstance(answer, Exception):
        raise answer
    found: list[Speed] = answer
    return found


def _answer(there: Connection, loading: str, *given: Any) -> None:
    """Send what `measure_here` returns or raises; Ctrl-C is for the parent, which ends this.

    `loading`: how loading processes are started, as by `jol train`; by default as this one was,
    and they would miss the end of this one while they import torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_start_method(loading, force=True)
    try:
        there.send(measure_here(*given))
    except Exception as error:
        there.send(error if isinstance(error, JolError) else RuntimeError(str(error)))


def measure_here(settings: Sequence[TrainSettings], dataset: str, root: Path) -> list[Speed]:
    """`measure` in this process."""
    from detectors.data.catalog import evaluation_data, training_data

    data = training_data(dataset, root), evaluation_data(dataset, root)
    return [_measure(one, *data) for one in settings]


def _measure(settings: TrainSettings, train_data: Any, test_data: Any) -> Speed:
    import torch

    from detectors.data.batches import train_batches
    from detectors.inference.detect import detect, read_image
    from detectors.training.loop import make_model
    from detectors.training.step import Stepper

    try:
        model = make_model(settings, len(train_data.class_names))
    except (ValueError, NotImplementedError, OSError) as error:
        raise Unusable(str(error)) from error
    stepper = Stepper(model, settings)
    batches: Any = train_batches(
        train_data,
        batch_size=settings.batch_size,
        crop=settings.crop,
        seed=settings.seed,
        steps=MOST,
        workers=settings.workers,
    )
    with closing(batches):
        step = _median(lambda i: stepper(next(batches), i + 1, 0.0))
    images, device = len(test_data), settings.device
    image = _median(lambda i: detect(model, [read_image(test_data, i % images)[0]], device))
    state, momentum = model.state_dict(), [p for p in model.parameters() if p.requires_grad]
    weights, more = (
        sum(t.numel() * t.element_size() for t in tensors) for tensors in (state.values(), momentum)
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    return Speed(step, image, weights + more, weights, name)


def _median(work: Callable[[int], object]) -> float:
    """Median seconds of a call but the first; calls get their number, from 0."""
    seconds: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(seconds) < LEAST or (len(seconds) < MOST and time.perf_counter() < until):
        began = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
