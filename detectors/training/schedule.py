"""The learning rate of a step."""

from detectors.training.settings import TrainSettings

WARMUP = 500
"""Most steps of the warm-up, which is a tenth of a shorter run."""


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of step 0, 1, ...: it rises linearly over the first steps, then falls twice.

    It falls to a tenth each time: at 8/12 and 11/12 of the run, or at settings.decay_steps, however
    many these are.
    """
    warmup = min(WARMUP, max(1, settings.steps // 10))
    if settings.decay_steps is None:
        decays = sum(12 * step >= part * settings.steps for part in (8, 11))
    else:
        decays = sum(step >= decay for decay in settings.decay_steps)
    return settings.lr * min(1.0, (step + 1) / warmup) * 0.1**decays
