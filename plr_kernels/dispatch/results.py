"""Uninitialised memory for what operators that rank return; the fake implementations and all backends agree on it."""

from __future__ import annotations

import torch
from torch import Tensor


def new_lists(states: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For states [R, ...], scores float32 [R, k] and ids int64 [R, k]."""
    shape = (states.shape[0], k)
    return states.new_empty(shape, dtype=torch.float32), states.new_empty(shape, dtype=torch.int64)


def new_counts(states: Tensor) -> tuple[Tensor, Tensor]:
    """For states [R, ...], the counts greater and equal, int64 [R] each."""
    shape = states.shape[:1]
    return states.new_empty(shape, dtype=torch.int64), states.new_empty(shape, dtype=torch.int64)
