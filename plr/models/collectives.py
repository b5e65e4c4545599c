"""What a batch's loss needs of the rows that other processes have: sums and states over all of them, with gradients.

The gradient that is computed with them is that of Σ_r (n_r/N)·ℓ_r over the processes r, of which n_r of the batch's N
targets are and whose `losses` return ℓ_r (training weighs them so). A term may hence be a mean over a process's own
targets, or a value of all, which then is the same in every process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from plr.data import Share
from plr_kernels import linear_cross_entropy

__all__ = ["batch_mean", "contrast", "gather_histories", "nothing", "total"]


def total(value: Tensor) -> Tensor:
    """Return the sum of all processes' values, of one shape; each process must differentiate it, or none."""
    return _Total.apply(value)


def batch_mean(values: Tensor, share: Share | None, views: int = 1) -> Tensor:
    """Return the mean of [views·n, ...] over its first dimension, over the histories of the whole batch."""
    if share is None:
        return values.mean(dim=0)
    own = values[:0] if share.idle else values
    return total(own.sum(dim=0)) / (views * share.targets)


def gather_histories(states: Tensor, share: Share) -> Tensor:
    """Return what [n, ...] of all processes is together, [N, ...], in the order of the whole batch's targets."""
    numbers = [share.numbers(rank) for rank in range(share.world_size)]
    gathered = _Gather.apply(states[:0] if share.idle else states, [len(own) for own in numbers], share.rank)
    return gathered[torch.cat(numbers).argsort().to(states.device)]


def contrast(queries: Tensor, keys: Tensor, sizes: tuple[int, ...], share: Share, temperature: float) -> Tensor:
    """Return the mean over N histories and T of −log softmax_j(q_it·k_jt / temperature)_i.

    Args:
        queries, keys: [n, T, d], of the process's own histories.
        sizes: how many histories each group of the whole batch has, one after the other; a history is compared with
            those of its group, j, in all processes.
        share: which of the batch's histories these are.
        temperature: what scores are divided by.
    """
    every = gather_histories(keys, share)  # [N, T, d]
    numbers = share.numbers()
    own_numbers = numbers.to(queries.device)
    steps = queries.shape[1]
    summed = nothing(queries, every)
    own_first = first = 0
    for size in sizes:
        count = int(((numbers >= first) & (numbers < first + size)).sum())
        if count:
            targets = own_numbers[own_first : own_first + count] - first
            for t in range(steps):
                summed = summed + linear_cross_entropy(
                    queries[own_first : own_first + count, t],
                    every[first : first + size, t],
                    targets,
                    temperature=temperature,
                    reduction="sum",
                )
        first, own_first = first + size, own_first + count
    return total(summed) / (share.targets * steps)


def nothing(*tensors: Tensor) -> Tensor:
    """Return 0, of which the tensors have gradients: what a process adds that has no part in a value of all."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)  # that of the losses
    return torch.stack([each[:0].sum(dtype=dtype) for each in tensors]).sum()


class _Total(torch.autograd.Function):
    """The sum over processes; the gradient w.r.t. each one's value is the sum of all of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


class _Gather(torch.autograd.Function):
    """The rows of all processes, one process after the other; a row's gradient is the sum of all of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        padded = own.new_zeros(max(counts), *own.shape[1:])  # all_gather takes equal shapes
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _summed(gradient)[ctx.own], None, None


def _summed(value: Tensor) -> Tensor:
    """Half-precision numbers are added in float32."""
    half = value.dtype in (torch.bfloat16, torch.float16)
    result = value.detach().to(torch.float32 if half else value.dtype, copy=True).contiguous()
    distributed.all_reduce(result)
    return result.to(value.dtype)
