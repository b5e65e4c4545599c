"""Cross-entropy over a table that processes share: the exact one, from what each has of the softmax's sum."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from plr_kernels.dispatch.checks import check_ids, check_loss_options, check_states_and_items, check_targets
from plr_kernels.dispatch.gradients import differentiable_once
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.distributed.peers import (
    Facts,
    Peers,
    agree,
    check_local_table,
    dtype_number,
    gradients_number,
    reduction_number,
    temperature_number,
)
from plr_kernels.distributed.shard import ItemShard
from plr_kernels.linear_cross_entropy import linear_cross_entropy
from plr_kernels.mixture_cross_entropy.reference import mixed

__all__ = ["sharded_linear_cross_entropy", "sharded_mixture_cross_entropy"]

_IGNORED = -100


def sharded_linear_cross_entropy(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    shard: ItemShard,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`linear_cross_entropy` of a process's states among all items, of which it holds some rows.

    The processes' results add up to that of one process with all states: "sum" is over a process's own rows, "mean"
    divides that by the number of rows that count in all processes. Each process differentiates its own result; the
    gradients w.r.t. its states and to its rows of the table are then those of the processes' sum, complete.

    Sent are the states, three numbers a row and the states' gradients (docs/distributed.md); nothing grows with V.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64. R may differ between processes, and
            be 0.
        items: [shard.rows, D], in the dtype of `states`.
        targets: int64 [R], in [0, V) or `ignore_index`.
        shard: which rows of the table `items` are.
        temperature, ignore_index, reduction: as for `linear_cross_entropy`; the same in all processes.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit, or does not fit another process's.
        RuntimeError: another process refuses its arguments.
    """

    def check() -> Facts:
        return _facts("R D", states, items, None, targets, shard, temperature, ignore_index, reduction)

    peers = agree(shard, states, check)
    states, items = floating_inputs(states=states, items=items)
    with no_autocast(states):
        losses, counted = _CrossEntropy.apply(
            states, items, targets.masked_fill(targets == ignore_index, _IGNORED), peers, temperature
        )
        return _reduced(losses, counted, reduction)


def sharded_mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    shard: ItemShard,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`mixture_cross_entropy` of a process's states among all items, of which it holds some rows.

    As `sharded_linear_cross_entropy` with R·M rows: each process mixes its streams' losses.

    Args:
        states: [R, M, D], M >= 1 and the same in all processes.
        log_weights: [R, M], in the dtype of `states`.
        items, targets, shard, temperature, ignore_index, reduction: as for `sharded_linear_cross_entropy`.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        As `sharded_linear_cross_entropy`.
    """

    def check() -> Facts:
        return _facts("R M D", states, items, log_weights, targets, shard, temperature, ignore_index, reduction)

    rows = agree(shard, states, check)
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    streams = states.shape[1]
    peers = Peers(shard, streams * rows.rows, streams * rows.size)
    with no_autocast(states):
        of_streams = targets.masked_fill(targets == ignore_index, _IGNORED).repeat_interleave(streams)
        losses, counted = _CrossEntropy.apply(states.flatten(0, 1), items, of_streams, peers, temperature)
        mixtures = mixed(losses.view(-1, streams), log_weights, targets, ignore_index, "none")
        return _reduced(mixtures, counted // streams, reduction)


def _facts(
    layout: str,
    states: Tensor,
    items: Tensor,
    log_weights: Tensor | None,
    targets: Tensor,
    shard: ItemShard,
    temperature: float,
    ignore_index: int,
    reduction: str,
) -> Facts:
    """Check the arguments as far as one process can; returns what the others' must agree with."""
    floating = {"states": states, "items": items}
    if log_weights is not None:
        floating["log_weights"] = log_weights
    states, items, *rest = floating_inputs(**floating)
    sizes = check_states_and_items(layout, states, items, rest[0] if rest else None)
    check_local_table(items, shard)
    check_ids("targets", targets, "R", states, sizes)
    check_loss_options(temperature, ignore_index, reduction)
    check_targets(targets, shard.items, ignore_index)
    return {
        "R": sizes["R"],
        "D": sizes["D"],
        "dtype": dtype_number(states),
        "M": sizes.get("M", 1),
        "temperature": temperature_number(temperature),
        "reduction": reduction_number(reduction),
        "gradients": gradients_number(items, states),
    }


def _reduced(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """The losses [R], their sum, or their sum over how many count in all processes."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.clamp(min=1)


class _CrossEntropy(torch.autograd.Function):
    """The loss log Σ_v exp(s_v) − s_target of each own state, scores s over all items, and how many rows count.

    A process with rows S of the table computes lse_S = log Σ_{v∈S} exp(s_v) of every state as `linear_cross_entropy`
    of some item t of S, plus s_t: of the target where S has it. With p = exp(lse_S − log Σ_v exp(s_v)), the part of the
    probability that is in S, the gradient is p times that of this cross-entropy, and p − [t is the target] times that
    of s_t, on one row of the table.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, items: Tensor, targets: Tensor, peers: Peers, temperature: float
    ) -> tuple[Tensor, Tensor]:
        shard = peers.shard
        every = peers.gather(targets, _IGNORED)  # [N], N = W·R*
        counted = every != _IGNORED
        inside = counted & shard.holds(every)
        # Where the target is elsewhere any item of the shard will do. A different one for each row: what is added to
        # an item and taken from it again is rounded, in half precision coarsely, and one item would get it all.
        others = torch.arange(len(every), device=every.device) % shard.rows
        chosen = torch.where(inside, every - shard.first, others)
        all_states = peers.gather(states.detach()).masked_fill(~counted[:, None], 0)  # [N, D]
        table = items.detach()
        all_states.requires_grad_(ctx.needs_input_grad[0])
        table.requires_grad_(ctx.needs_input_grad[1])
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            local = linear_cross_entropy(
                all_states, table, chosen.masked_fill(~counted, _IGNORED), temperature=temperature, reduction="none"
            )
        with torch.no_grad():
            score = (upcast(all_states) * upcast(table[chosen])).sum(dim=1) / temperature
            lse = local.detach() + score
            largest = peers.total(lse, distributed.ReduceOp.MAX)
            sums, target_score = peers.total(torch.stack([(lse - largest).exp(), score.masked_fill(~inside, 0)]))
            total = largest + sums.log()
            losses = (total - target_score).masked_fill(~counted, 0)
        ctx.peers, ctx.temperature, ctx.kept = peers, temperature, None
        if any(ctx.needs_input_grad):
            part = (lse - total).exp().masked_fill(~counted, 0)
            ctx.kept = all_states, table, local, chosen, part, inside
        number = counted.sum()
        ctx.mark_non_differentiable(number)
        return peers.own(losses), number

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("the loss was differentiated before; its second backward pass has nothing to go through")
        all_states, table, local, chosen, part, inside = ctx.kept
        ctx.kept = None
        peers: Peers = ctx.peers
        of_all = peers.gather(gradient)  # [N]
        wanted = [each for each in (all_states, table) if each.requires_grad]
        with torch.enable_grad():
            found = iter(torch.autograd.grad(local, wanted, of_all * part))
        of_chosen = ((of_all * (part - inside.to(part.dtype))) / ctx.temperature)[:, None]
        of_states = of_items = None
        if all_states.requires_grad:
            summands = upcast(next(found)).addcmul(of_chosen, upcast(table[chosen]))
            of_states = peers.scatter(summands).to(all_states.dtype)
        if table.requires_grad:
            of_items = next(found).index_add(0, chosen, (of_chosen * upcast(all_states)).to(table.dtype))
        return of_states, of_items, None, None, None
