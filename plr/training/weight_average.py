"""An exponential moving average of the weights: what is validated, kept and tested where a run averages them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import Parameter

__all__ = ["advance_average", "averaged", "decay_of_step", "set_average"]

AVERAGE = "average"
"""Its name in the optimiser's state, beside Adam's moments: resuming and sharing out rows treat it as one of them."""


def decay_of_step(decay: float, step: int) -> float:
    """Return how much of the average stays in a step, from 1: few steps' average must not hold on to the first ones."""
    return min(decay, step / (step + 9))


@torch.no_grad()
def advance_average(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """Move the average after a step of the optimiser: average ← δ·average + (1 − δ)·weights, δ by `decay_of_step`.

    A parameter's average begins with the weights after its first step; one that is never moved has none.

    Args:
        optimizer: whose parameters, each with state once it has been moved.
        decay: δ after many steps, at least 0 and below 1.
        step: its number, from 1.
    """
    averages, weights = [], []
    for parameter in _parameters(optimizer):
        state = optimizer.state.get(parameter)
        if not state:
            continue
        if AVERAGE not in state:
            state[AVERAGE] = parameter.detach().clone()
            continue
        averages.append(state[AVERAGE])
        weights.append(parameter.detach())
    if averages:
        torch._foreach_lerp_(averages, weights, 1 - decay_of_step(decay, step))


def set_average(optimizer: torch.optim.Optimizer) -> None:
    """Give the averages to the parameters that have one, for good."""
    for parameter in _parameters(optimizer):
        average = optimizer.state.get(parameter, {}).get(AVERAGE)
        if average is not None:
            parameter.data.copy_(average)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it parameters have their averages, where they have one; afterwards what they had, to the bit."""
    before = {}
    for parameter in _parameters(optimizer):
        average = optimizer.state.get(parameter, {}).get(AVERAGE)
        if average is not None:
            before[parameter] = parameter.data
            parameter.data = average
    try:
        yield
    finally:
        for parameter, weights in before.items():
            parameter.data = weights


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
