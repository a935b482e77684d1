"""The training loop, which can be killed at any point and resumed with the same result.

`Trainer.run` is the loop. Data and draws of a step depend on the seed and the step only, so base
and JOL runs of one seed see the same batches from the same initial weights. A checkpoint is written
before the evaluation of its step, which a resumed run does again.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from detectors.data.batches import Batch, train_batches
from detectors.data.dataset import CocoDetection
from detectors.data.images import black_images
from detectors.errors import (
    BadEvaluation,
    BadSteps,
    DataError,
    Stopped,
    TrainingError,
    means_no_memory,
    out_of_memory,
)
from detectors.evaluation.average_precision import Evaluation
from detectors.evaluation.model_evaluation import evaluate_model
from detectors.evaluation.report import metrics_line, write_results
from detectors.inference.scale import Scale, scale_of
from detectors.models.build import build_detector, compile_model
from detectors.training.batch_feed import feed
from detectors.training.checkpoints import Checkpoints
from detectors.training.run_folder import MetricsLog
from detectors.training.schedule import learning_rate
from detectors.training.settings import TrainSettings
from detectors.training.state import State, TrainResult, losses_line
from detectors.training.step import Outcome, Stepper
from detectors.utils.distributed import ALONE, World, means_lost
from detectors.utils.progress import Progress, peak_memory
from detectors.utils.signals import Interrupted, Stopping

LOG_EVERY = 20
"""Steps between two lines of the log, each with the means over these steps."""


def make_model(
    settings: TrainSettings,
    num_classes: int,
    *,
    resumed: bool = False,
    world: World = ALONE,
) -> nn.Module:
    """The detector of a run with its initial weights, which depend on the seed, not on the loss.

    `resumed`: a checkpoint brings the weights; those the run began with are not read again.
    """
    torch.manual_seed(settings.seed)
    model = build_detector(
        settings.detector,
        num_classes,
        settings.loss,
        **settings.model_arguments(),
        load_weights=not resumed,
        sync_group=world.group,
    )
    order = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(settings.device).to(memory_format=order)
    if settings.compile:
        compile_model(model)
    return model


def train(
    settings: TrainSettings,
    model: nn.Module,
    train_data: CocoDetection,
    val_data: CocoDetection,
    out: Path,
    *,
    checkpoint: dict[str, Any] | None = None,
    title: str = "train",
    world: World = ALONE,
) -> TrainResult | None:
    """Train `model` (from make_model) and write the run into the folder `out`, which exists.

    Args:
        settings: the run's settings.
        model: changed in place.
        train_data: images to learn from.
        val_data: images to evaluate on, with the same classes.
        out: the run's folder; run_folder lists its files.
        checkpoint: what checkpoints.load_last returned, to resume from.
        title: what the progress line is called.
        world: the processes that share the work; only the one that leads writes and prints.

    Returns:
        The result; None on ranks that do not lead.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; a checkpoint of the last step is written.
        BadEvaluation: an image to evaluate on cannot be read.
        TrainingError: more steps in a row than settings.max_bad_steps allows with a loss that is
            not finite, an image that cannot be read or loading processes that died; a file that
            cannot be written; another rank that ended.
    """
    stepper = Stepper(model, settings, world)
    state = State()
    if checkpoint is not None:
        stepper.load(checkpoint)
        state = State(**checkpoint["state"])
    checkpoints = Checkpoints(out, checkpoint, leads=world.leads)
    with (
        Stopping() as stopping,
        Progress(title, state.step, settings.steps, leads=world.leads) as progress,
        _explained(state, checkpoints, world),
        _log(settings, out, state.step, world) as log,
    ):
        trainer = Trainer(
            settings, stepper, train_data, val_data, checkpoints, log, progress, stopping, state
        )
        return trainer.run()


def _log(
    settings: TrainSettings, out: Path, step: int, world: World
) -> AbstractContextManager[MetricsLog | None]:
    """The log of a run; None on ranks that do not lead."""
    if not world.leads:
        return nullcontext()
    return MetricsLog(out, step, tensorboard=settings.tensorboard)


@contextmanager
def _explained(state: State, checkpoints: Checkpoints, world: World) -> Iterator[None]:
    """Say at which step a file, memory or another rank was wanting, and what is kept."""
    try:
        yield
    except OSError as error:
        if not error.filename or checkpoints.folder not in Path(error.filename).parents:
            raise  # nothing that a run writes
        what = f"{error.filename}: cannot be written: {error.strerror}"
        raise TrainingError(f"step {state.step}: {what}; {checkpoints.kept}") from error
    except (RuntimeError, MemoryError) as error:
        if means_no_memory(error):
            what = out_of_memory("train")
        elif means_lost(error):
            what = f"rank {world.rank}: another rank has ended or cannot be reached"
        else:
            raise
        raise TrainingError(f"after step {state.step}: {what}; {checkpoints.kept}") from error


@dataclasses.dataclass
class Trainer:
    """Trains a detector: `run` is the whole of training, `step` one step of it.

    Attributes:
        settings: the run's settings.
        stepper: takes the optimizer steps; it has the model and the processes that share the work.
        train_data: images to learn from.
        val_data: images to evaluate on, with the same classes.
        checkpoints: writes them, and results into the same folder.
        log: takes the numbers; None: another process writes them.
        progress: shows how far the run is.
        stopping: whether SIGTERM or Ctrl-C came.
        state: where the run is; kept up to date.
        seconds: of each step so far, without those before the run was resumed.
        warned: the data sets of which was said that images of theirs are black.
    """

    settings: TrainSettings
    stepper: Stepper
    train_data: CocoDetection
    val_data: CocoDetection
    checkpoints: Checkpoints
    log: MetricsLog | None
    progress: Progress
    stopping: Stopping
    state: State = dataclasses.field(default_factory=State)
    seconds: list[float] = dataclasses.field(default_factory=list)
    warned: set[str] = dataclasses.field(default_factory=set)

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.train_data) / self.settings.batch_size)

    def run(self) -> TrainResult | None:
        """Train to the last step, evaluating and writing checkpoints on the way.

        Returns:
            The result; None on ranks that do not lead.

        Raises:
            Stopped, BadEvaluation, TrainingError: as `train`.
        """
        evaluation = None
        # closing ends the loading processes, also where an error is kept
        with closing(self.batches()) as batches:
            while True:
                if self._evaluation_is_due():  # a resumed run does the one of its checkpoint again
                    evaluation = self._evaluate()
                if self.state.step == self.settings.steps:
                    break
                self.step(batches)
                if self._checkpoint_is_due():
                    self._save()
        self._write_results(evaluation)
        if evaluation is None:
            return None
        median = statistics.median(self.seconds) if self.seconds else math.nan
        return TrainResult(evaluation, median, self.state.best, self.state.best_step)

    def batches(self) -> Generator[Batch | str]:
        """This rank's batches of the steps that are left, or why there is none."""
        settings = self.settings

        def load(step: int) -> Iterator[Batch]:
            return train_batches(
                self.train_data,
                batch_size=settings.batch_size,
                crop=settings.crop,
                seed=settings.seed,
                start_step=step,
                steps=settings.steps,
                workers=settings.workers,
                rank=self.stepper.world.rank,
                ranks=self.stepper.world.size,
                leaving=lambda: self.stopping.asked,
                on_black=self.train_data.black.add,
            )

        return feed(
            load,
            self.state.step,
            settings.steps,
            settings.max_bad_steps,
            self.progress.note,
            lambda: self.stopping.asked,
        )

    def step(self, batches: Iterator[Batch | str]) -> None:
        """Take the next step with the next batch, show it, and log it if it is its turn.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; a checkpoint is written.
            TrainingError: as `train`.
        """
        settings, state = self.settings, self.state
        began = time.perf_counter()
        rate = learning_rate(state.step, settings)
        try:
            batch = next(batches)
            outcome = self.stepper(batch, state.step + 1, rate, bool(self.stopping.asked))
        except TrainingError as error:
            raise TrainingError(f"{error}; {self.checkpoints.kept}") from error
        if outcome.stop and outcome.problem:  # the step is taken when the run is resumed
            self._stop()
        state.step += 1
        self.seconds.append(time.perf_counter() - began)
        self._judge(outcome)
        values = {} if outcome.problem else outcome.values
        means = state.add({**values, "seconds": self.seconds[-1]}, LOG_EVERY)
        self.progress.step(state.step, self._fields(means, rate), self.seconds)
        if state.step % LOG_EVERY == 0 or state.step == settings.steps:
            self._write({"lr": rate, **means})
            self._warn_of_black()
        if outcome.stop:
            self._stop()

    def _judge(self, outcome: Outcome) -> None:
        """Let a bad step pass, or end the run."""
        if not outcome.problem:
            self.state.bad = 0
            return
        self.state.bad += 1
        what = f"step {self.state.step}: {outcome.problem}"
        if self.state.bad > self.settings.max_bad_steps:
            raise BadSteps(f"{what}; {self.checkpoints.kept}")
        allowed = f"{self.state.bad} of {self.settings.max_bad_steps} in a row"
        self.progress.note(f"{what}; step skipped, {allowed}")

    def _fields(self, means: Mapping[str, float], rate: float) -> list[str]:
        """What the live line shows."""
        state, settings = self.state, self.settings
        epochs = math.ceil(settings.steps / self.epoch)
        return [
            losses_line(means),
            f"{settings.batch_size / means['seconds']:.1f} images/s",
            f"epoch {math.ceil(state.step / self.epoch)}/{epochs}",
            f"lr {rate:.2g}",
            peak_memory(settings.device),
        ]

    def _evaluation_is_due(self) -> bool:
        every = self.settings.eval_every * self.epoch
        step = self.state.step
        return step == self.settings.steps or bool(every and step and step % every == 0)

    def _evaluate(self) -> Evaluation | None:
        """Evaluate, log it, and keep the weights if they are the best; None: another rank does."""
        settings, state = self.settings, self.state
        try:
            evaluation = evaluate_model(
                self.stepper.model,
                self.val_data,
                settings.device,
                settings.evaluator,
                settings.protocol,
                counted=settings.counted,
                world=self.stepper.world,
                leaving=lambda: self.stopping.asked,
                at_once=self.stopping.at_once,
            )
        except DataError as error:
            what = f"step {state.step}: its evaluation: {error}"
            raise BadEvaluation(f"{what}; {self.checkpoints.kept}") from error
        except Interrupted:
            self._leave(f"step {state.step}: its evaluation was")
        if evaluation is not None:
            self._write({"evaluation": evaluation.metrics})
            what = f"step {state.step}: "
            line = metrics_line(evaluation, before=f"{self.progress.title}: {what}")
            self.progress.note(f"{what}{line}")
            if not evaluation.metrics["AP"] <= state.best:  # NaN too, where there are no objects
                state.best, state.best_step = evaluation.metrics["AP"], state.step
                self.checkpoints.save_best(self._weights())
        self._warn_of_black()
        return evaluation

    def _warn_of_black(self) -> None:
        """Once for each data set, as soon as an image of it has come out black."""
        for data in (self.train_data, self.val_data):
            if data.black and data.source not in self.warned:
                self.warned.add(data.source)
                self.progress.note(f"warning: {data.source}: {black_images(len(data.black))}")

    def _write_results(self, evaluation: Evaluation | None) -> None:
        """Write and draw the last evaluation, on the rank that has it."""
        left = False
        if evaluation is not None:
            folder, at_once = self.checkpoints.folder, self.stopping.at_once
            try:
                write_results(folder, evaluation, self.settings.loss, at_once=at_once)
            except Interrupted:
                left = True
        if self.stepper.world.sum(torch.tensor([float(left)])):
            self._leave(f"step {self.state.step}: the pictures of its evaluation were")

    def _checkpoint_is_due(self) -> bool:
        step = self.state.step
        return step == self.settings.steps or step % self.epoch == 0 or self.checkpoints.are_old()

    def _save(self) -> None:
        state = {"state": dataclasses.asdict(self.state)}
        self.checkpoints.save_last({**self._weights(), **self.stepper.state(), **state})

    @cached_property
    def _scale(self) -> Scale:
        return scale_of(self.train_data, dataclasses.asdict(self.settings), training=True)

    def _weights(self) -> dict[str, Any]:
        """What is needed to use the model: plain values and tensors only."""
        return {
            "model": self.stepper.model.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "class_names": self.val_data.class_names,
            "category_ids": self.val_data.category_ids,
            "scale": self._scale,
            "step": self.state.step,
        }

    def _stop(self) -> NoReturn:
        self._save()
        self._leave(f"step {self.state.step} of {self.settings.steps}:")

    def _leave(self, where: str) -> NoReturn:
        asked = self.stopping.asked or "a signal to another rank"
        raise Stopped(
            f"{where} stopped by {asked}; {self.checkpoints.kept}; "
            f"resume with the same command and --resume"
        )

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write({"step": self.state.step, **record})
