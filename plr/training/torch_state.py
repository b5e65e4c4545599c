"""What PyTorch has one of for the whole process, given back to whoever trains from Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["own_torch_state"]


@contextmanager
def own_torch_state(threads: int) -> Iterator[None]:
    """Compute with so many CPU threads (0: with as many as there are), and seed at will, until the block ends.

    Afterwards threads and generators are as the caller had them: seeded for each step, they would otherwise give every
    caller the same numbers after the same run.
    """
    before = torch.get_num_threads()
    # Nobody has drawn on GPUs yet where CUDA is not started; to ask it would start it, which forks do not bear.
    started = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else ()):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
    if torch.cuda.is_initialized() and not started:
        torch.cuda.manual_seed_all(torch.initial_seed())
