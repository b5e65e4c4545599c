"""The learning rate of every step: a function of its number alone, so that nothing of it need be kept for resuming."""

from __future__ import annotations

import math

from plr.config import Config
from plr.errors import RunError

__all__ = ["check_warmup", "is_scheduled", "learning_rate", "steps_of"]


def steps_of(config: Config, batches: int) -> int:
    """Return how many steps the optimiser takes in all epochs of so many batches."""
    return config.epochs * -(-batches // config.accumulate_batches)


def is_scheduled(config: Config) -> bool:
    """Whether the learning rate changes."""
    return config.schedule != "constant" or config.warmup_steps > 0


def check_warmup(config: Config, steps: int) -> None:
    """Refuse a warm-up in which a run of so many steps would end.

    Raises:
        RunError: it is that long.
    """
    if config.warmup_steps >= steps:
        raise RunError(
            f"warmup_steps must be below the {steps} steps that {config.epochs} epochs have here, or lr is never "
            f"reached; found {config.warmup_steps}"
        )


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    With W = warmup_steps and S = steps it is lr·(step + 1)/W for step < W; from then on, where f = (step − W) / (S − W)
    runs from 0 towards 1, it is lr (constant), lr·(1 − f) (linear) or lr·(1 + cos πf)/2 (cosine).

    Args:
        config: names the schedule.
        step: its number, from 0.
        steps: of all epochs.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * done)) / 2
    return config.lr
