"""The training loop, which can be killed anywhere and go on as if nothing had happened.

The learning rate rises linearly over the first steps and falls to a tenth at 8/12 and 11/12 of the
run, or where the settings say. Data and draws of a step depend on the seed and the step only, so
base and JOL runs of one seed see the same batches from the same initial weights. A checkpoint is
written before the evaluation of its step, which a resumed run does again.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from detectors.data.batches import Batch, train_batches
from detectors.data.dataset import CocoDetection
from detectors.errors import BadSteps, DataError, TrainingError
from detectors.evaluation.average_precision import Evaluation
from detectors.evaluation.model_evaluation import Interrupted, evaluate_model
from detectors.evaluation.report import metrics_line, write_results
from detectors.models.build import LOSS_NAMES, build_detector, compile_model
from detectors.training import checkpoints
from detectors.training.batch_feed import feed
from detectors.training.run_folder import MetricsLog
from detectors.training.schedule import learning_rate
from detectors.training.settings import TrainSettings
from detectors.training.step import Outcome, Stepper
from detectors.utils.distributed import ALONE, World, means_lost
from detectors.utils.progress import Progress, peak_memory
from detectors.utils.signals import Stopping

LOG_EVERY = 20
SAVE_SECONDS = 600.0
"""Beside the end of each epoch, a checkpoint is written when the last one is so old."""


class Stopped(TrainingError):
    """A signal came; the run can be resumed."""

    everywhere = True


class BadEvaluation(TrainingError):
    """An image to evaluate on cannot be read; what was learnt is kept."""

    everywhere = True


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
        evaluation: the final one.
        seconds_per_step: median, from loading the data to the update; NaN if a finished run was
            resumed.
        best: the best AP, 0 to 1, and best_step: the step of its weights, those of best.pt.
    """

    evaluation: Evaluation
    seconds_per_step: float
    best: float
    best_step: int


@dataclasses.dataclass
class State:
    """Where a run is, beside its weights.

    Attributes:
        step: steps done.
        best: the best AP so far, and best_step: its step.
        bad: steps left out in a row.
        recent: values of the last LOG_EVERY steps, whose means are logged.
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad: int = 0
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """Remember a step's values by name; the means over those remembered."""
        self.recent = [*self.recent, dict(values)][-LOG_EVERY:]
        columns: dict[str, list[float]] = {}
        for step in self.recent:
            for name, value in step.items():
                if math.isfinite(value):  # fp16's gradients may not be, until their scale fits
                    columns.setdefault(name, []).append(value)
        return {name: statistics.fmean(column) for name, column in columns.items()}


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
    """Train `model` (from make_model) and write the run into `out` (see runs), which exists.

    Args:
        settings: the run's settings.
        model: changed in place.
        train_data: images to learn from.
        val_data: images to evaluate on, with the same classes.
        out: the run's folder.
        checkpoint: what checkpoints.load_last returned, to go on from there.
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
    run = _Run(settings, Stepper(model, settings, world), val_data, out)
    if checkpoint is not None:
        run.load(checkpoint)
    run.epoch = math.ceil(len(train_data) / settings.batch_size)
    with Stopping() as run.stopping, ExitStack() as stack:
        progress = Progress(title, run.state.step, settings.steps, leads=world.leads)
        run.progress = stack.enter_context(progress)
        try:
            if world.leads:
                log = MetricsLog(out, run.state.step, tensorboard=settings.tensorboard)
                run.log = stack.enter_context(log)
            return run.to_the_end(train_data)
        except OSError as error:
            if not error.filename or out not in Path(error.filename).parents:
                raise  # nothing that a run writes
            what = f"{error.filename}: cannot be written: {error.strerror}"
            raise TrainingError(f"step {run.state.step}: {what}; {run.kept}") from error
        except RuntimeError as error:
            if not means_lost(error):
                raise
            what = f"rank {world.rank}: another rank has ended or cannot be reached"
            raise TrainingError(f"after step {run.state.step}: {what}; {run.kept}") from error


class _Run:
    """A run under way."""

    epoch: int
    stopping: Stopping
    progress: Progress
    log: MetricsLog | None = None

    def __init__(
        self, settings: TrainSettings, stepper: Stepper, val_data: CocoDetection, out: Path
    ) -> None:
        self.settings, self.stepper, self.world = settings, stepper, stepper.world
        self.val_data, self.out = val_data, out
        self.state = State()
        self.seconds: list[float] = []
        self.saved_at = time.monotonic()
        self.kept = f"no checkpoint was written in {out} before"

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state = State(**checkpoint["state"])
        self.stepper.load(checkpoint)
        self._note_kept()

    def batches(self, train_data: CocoDetection) -> Generator[Batch | str]:
        """This rank's batches of the steps that are left."""
        settings = self.settings

        def load(step: int) -> Iterator[Batch]:
            return train_batches(
                train_data,
                batch_size=settings.batch_size,
                crop=settings.crop,
                seed=settings.seed,
                start_step=step,
                steps=settings.steps,
                workers=settings.workers,
                rank=self.world.rank,
                ranks=self.world.size,
            )

        return feed(
            load,
            self.state.step,
            settings.steps,
            settings.max_bad_steps,
            self.progress.note,
            lambda: self.stopping.asked,
        )

    def to_the_end(self, train_data: CocoDetection) -> TrainResult | None:
        """The loop."""
        settings, state = self.settings, self.state
        evaluation = None
        # closing ends the loading processes, also where an error is kept
        with closing(self.batches(train_data)) as batches:
            while True:
                if self._is_due():
                    evaluation = self._evaluate()
                if state.step == settings.steps:
                    break
                self._train_step(batches)
        if evaluation is None:
            return None
        write_results(self.out, evaluation, settings.loss)
        median = statistics.median(self.seconds) if self.seconds else math.nan
        return TrainResult(evaluation, median, state.best, state.best_step)

    def _is_due(self) -> bool:
        """Whether to evaluate at this step."""
        every = self.settings.eval_every * self.epoch
        step = self.state.step
        return step == self.settings.steps or bool(every and step and step % every == 0)

    def _train_step(self, batches: Iterator[Batch | str]) -> None:
        settings, state = self.settings, self.state
        began = time.perf_counter()
        rate = learning_rate(state.step, settings)
        try:
            batch = next(batches)
            outcome = self.stepper(batch, state.step + 1, rate, bool(self.stopping.asked))
        except TrainingError as error:
            raise TrainingError(f"{error}; {self.kept}") from error
        if outcome.stop and outcome.problem:  # the step is taken when the run goes on
            self._stop()
        state.step += 1
        self.seconds.append(time.perf_counter() - began)
        self._judge(outcome)
        values = {} if outcome.problem else outcome.values
        means = state.add({**values, "seconds": self.seconds[-1]})
        self.progress.step(state.step, self._fields(means, rate), self.seconds)
        last = state.step == settings.steps
        if state.step % LOG_EVERY == 0 or last:
            self._write({"lr": rate, **means})
        if outcome.stop:
            self._stop()
        old = time.monotonic() - self.saved_at > SAVE_SECONDS
        if last or state.step % self.epoch == 0 or old:
            self._save()

    def _stop(self) -> NoReturn:
        self._save()
        self._leave(f"step {self.state.step} of {self.settings.steps}:")

    def _leave(self, where: str) -> NoReturn:
        asked = self.stopping.asked or "a signal to another rank"
        raise Stopped(
            f"{where} stopped by {asked}; {self.kept}; go on with the same command and --resume"
        )

    def _judge(self, outcome: Outcome) -> None:
        """Let a bad step pass, or end the run."""
        if not outcome.problem:
            self.state.bad = 0
            return
        self.state.bad += 1
        what = f"step {self.state.step}: {outcome.problem}"
        if self.state.bad > self.settings.max_bad_steps:
            raise BadSteps(f"{what}; {self.kept}")
        allowed = f"{self.state.bad} of {self.settings.max_bad_steps} in a row"
        self.progress.note(f"{what}; step left out, {allowed}")

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

    def _evaluate(self) -> Evaluation | None:
        settings, state = self.settings, self.state
        try:
            evaluation = evaluate_model(
                self.stepper.model,
                self.val_data,
                settings.device,
                settings.evaluator,
                settings.protocol,
                world=self.world,
                leaving=lambda: self.stopping.asked,
            )
        except DataError as error:
            raise BadEvaluation(
                f"step {state.step}: its evaluation: {error}; {self.kept}"
            ) from error
        except Interrupted:
            self._leave(f"step {state.step}: its evaluation was")
        if evaluation is not None:
            self._write({"evaluation": evaluation.metrics})
            self.progress.note(f"step {state.step}: {metrics_line(evaluation)}")
            if not evaluation.metrics["AP"] <= state.best:  # NaN too, where there are no objects
                state.best, state.best_step = evaluation.metrics["AP"], state.step
                checkpoints.save(self.out / checkpoints.BEST, self._weights())
        return evaluation

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write({"step": self.state.step, **record})

    def _weights(self) -> dict[str, Any]:
        """What is needed to use the model: plain values and tensors only."""
        return {
            "model": self.stepper.model.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "class_names": self.val_data.class_names,
            "category_ids": self.val_data.category_ids,
            "step": self.state.step,
        }

    def _save(self) -> None:
        """Write a checkpoint to go on from."""
        if self.world.leads:
            whole = {
                **self._weights(),
                **self.stepper.state(),
                "state": dataclasses.asdict(self.state),
            }
            previous = self.out / checkpoints.PREVIOUS
            checkpoints.save(self.out / checkpoints.LAST, whole, previous=previous)
        self.saved_at = time.monotonic()
        self._note_kept()

    def _note_kept(self) -> None:
        self.kept = f"the last checkpoint, of step {self.state.step}, is in {self.out}"


def losses_line(means: Mapping[str, float]) -> str:
    """The two losses of the joint head and w⁻ as text, those that are there."""
    shown = [
        f"{short} {means[name]:.3f}"
        for short, names in LOSS_NAMES.items()
        for name in names
        if name in means
    ]
    return "  ".join(shown)
