"""The learning rate of a step."""

from detectors.training.settings import TrainSettings

WARMUP = 500


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then a tenth at each of two steps or more."""
    warmup = min(WARMUP, max(1, settings.steps // 10))
    if settings.decay_steps is None:
        decays = sum(12 * step >= part * settings.steps for part in (8, 11))
    else:
        decays = sum(step >= decay for decay in settings.decay_steps)
    return settings.lr * min(1.0, (step + 1) / warmup) * 0.1**decays
