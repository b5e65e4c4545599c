"""What PyTorch has one of for the whole process: a run's own while it is trained, then its caller's again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["own_torch_state"]


@contextmanager
def own_torch_state(threads: int) -> Iterator[None]:
    """Compute as a run of its options does, whatever the process has made its defaults, until the block ends.

    That is with so many CPU threads (0: with as many as there are), in float32 on CPUs where nothing else is said, and
    without autocast but the block's own. Generators may be seeded at will: afterwards they are as the caller had them,
    who would otherwise draw the same numbers after every run.
    """
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    # Nobody has drawn on GPUs yet where CUDA is not started; to ask would start it, which forks do not bear.
    started = torch.cuda.is_initialized()
    with ExitStack() as kept:
        if not started:
            kept.callback(_seed_cuda)  # after the generator whose seed it takes was given back
        kept.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else ()))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                kept.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            kept.enter_context(torch.device("cpu"))
        kept.callback(torch.set_num_threads, before)
        kept.callback(torch.set_default_dtype, dtype)
        torch.set_num_threads(threads or before)
        torch.set_default_dtype(torch.float32)
        yield


def _seed_cuda() -> None:
    """Seed the generators of GPUs, where CUDA was started meanwhile, as `torch.manual_seed` would have."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())
