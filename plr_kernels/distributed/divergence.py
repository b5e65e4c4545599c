"""The divergence of a group's item distributions over a table that processes share, from numbers that can be merged."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from plr_kernels.dispatch.checks import check_flag, check_states_and_items, check_temperature
from plr_kernels.dispatch.gradients import differentiable_once
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.distributed.peers import (
    Facts,
    Peers,
    agree,
    check_local_table,
    dtype_number,
    gather_equal,
    gradients_number,
    temperature_number,
)
from plr_kernels.distributed.shard import ItemShard
from plr_kernels.top_items.reference import blocks

__all__ = ["sharded_pairwise_kl"]


def sharded_pairwise_kl(
    states: Tensor, items: Tensor, shard: ItemShard, *, temperature: float = 1.0, detach_reference: bool = False
) -> Tensor:
    """`pairwise_kl` of a process's groups of states over all items, of which it holds some rows.

    The processes' results add up to that of one process with all groups: a process's result is the sum over its own
    groups, divided by the number of groups of all. Each process differentiates its own result; the gradients w.r.t. its
    states and to its rows of the table are then those of the processes' sum, complete.

    Computed by matrix products on blocks of items, in PyTorch: no kernel of `pairwise_kl` returns what can be merged.
    A block's scores take memory, W·B·N · 4096 numbers. docs/distributed.md says what is sent.

    Args:
        states: [B, N, D], float32, bfloat16, float16 or float64. B may differ between processes, and be 0; N is the
            same in all.
        items: [shard.rows, D], in the dtype of `states`.
        shard: which rows of the table `items` are.
        temperature, detach_reference: as for `pairwise_kl`; the same in all processes.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or the temperature does not fit, or does not fit another process's.
        RuntimeError: another process refuses its arguments.
    """

    def check() -> Facts:
        cast, table = floating_inputs(states=states, items=items)
        sizes = check_states_and_items("B N D", cast, table)
        check_local_table(table, shard)
        check_temperature(temperature)
        check_flag("detach_reference", detach_reference)
        return {
            "R": sizes["B"],
            "D": sizes["D"],
            "dtype": dtype_number(cast),
            "N": sizes["N"],
            "temperature": temperature_number(temperature),
            "detach_reference": int(detach_reference),
            "gradients": gradients_number(table, cast),
        }

    peers = agree(shard, states, check)
    states, items = floating_inputs(states=states, items=items)
    with no_autocast(states):
        return _Divergence.apply(states, items, peers, temperature, detach_reference)


class _Divergence(torch.autograd.Function):
    """(1 / (B N (N − 1))) Σ_b Σ_i E_{p_i}[d_i] over the own groups b of B, d_i = N s_i − Σ_j s_j, scores s.

    The logarithms of the softmax's sums cancel in Σ_{i≠j} KL(p_i || p_j); so does any number a_i that is taken from
    all scores s_i of a state. Of some rows of the table three numbers for each state say all: the largest score m_i,
    which is a_i, and with it z_i = Σ_v exp(s_i − m_i) and e_i = Σ_v exp(s_i − m_i) d_i.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, items: Tensor, peers: Peers, temperature: float, detach_reference: bool
    ) -> Tensor:
        every = peers.gather(states.detach())  # [A, N, D], A = W·B*
        groups = int(peers.total(torch.tensor(peers.rows, device=states.device)))
        largest, sums, deviations = _merged_blocks(every, items.detach(), temperature)  # [A, N] each
        top = peers.total(largest, distributed.ReduceOp.MAX)
        sums, deviations = peers.total(torch.stack(_moved(largest, sums, deviations, top)))
        mean = deviations / sums  # E_i
        size = states.shape[1]
        scale = 1 / max(groups * size * (size - 1), 1)
        ctx.peers, ctx.temperature, ctx.detach, ctx.scale = peers, temperature, detach_reference, scale
        ctx.save_for_backward(every, items, top, sums, mean)
        return peers.own(mean).sum() * scale

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        every, items, top, sums, mean = ctx.saved_tensors
        peers: Peers = ctx.peers
        states = upcast(every)
        size = states.shape[1]
        # The gradient w.r.t. its own result is each process's: [A, 1, 1]
        of_process = gather_equal(gradient, peers.shard)
        weight = of_process.repeat_interleave(peers.size)[:, None, None] * (ctx.scale / ctx.temperature)
        of_states = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        of_items = torch.empty_like(items) if ctx.needs_input_grad[1] else None
        for start, block in blocks(items):
            _, scores, deviations = _shifted(states, block, ctx.temperature, top)
            p = scores.exp() / sums[:, :, None]
            of_scores = p * (deviations - mean[:, :, None])
            if not ctx.detach:
                of_scores += size * p - p.sum(dim=1, keepdim=True)
            of_scores *= weight
            if of_states is not None:
                of_states += of_scores @ upcast(block)
            if of_items is not None:
                of_items[start : start + len(block)] = of_scores.flatten(0, 1).T @ states.flatten(0, 1)
        if of_states is not None:
            of_states = peers.scatter(of_states).to(every.dtype)
        return of_states, of_items, None, None, None


def _shifted(states: Tensor, block: Tensor, temperature: float, top: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What is taken from the scores, top or their largest [A, N]; the scores less that [A, N, width]; d of these."""
    scores = states @ upcast(block).T / temperature
    top = scores.amax(dim=2) if top is None else top
    scores = scores - top[:, :, None]
    return top, scores, scores.shape[1] * scores - scores.sum(dim=1, keepdim=True)


def _merged_blocks(every: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """m, z and e [A, N] of the process's rows of the table."""
    states = upcast(every)
    merged: tuple[Tensor, Tensor, Tensor] | None = None
    for _, block in blocks(items):
        largest, scores, of_scores = _shifted(states, block, temperature, None)
        weights = scores.exp()
        sums, deviations = weights.sum(dim=2), (weights * of_scores).sum(dim=2)
        if merged is None:
            merged = largest, sums, deviations
            continue
        top = torch.maximum(merged[0], largest)
        one, other = _moved(*merged, top), _moved(largest, sums, deviations, top)
        merged = top, one[0] + other[0], one[1] + other[1]
    assert merged is not None  # a shard has at least one row
    return merged


def _moved(largest: Tensor, sums: Tensor, deviations: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and e with scores less top [A, N], a number at least `largest`, in the place of `largest`."""
    change = largest - top
    shift = change.shape[1] * change - change.sum(dim=1, keepdim=True)  # of d
    factor = change.exp()
    return factor * sums, factor * (deviations + sums * shift)
