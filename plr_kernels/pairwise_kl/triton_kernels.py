"""The "triton" backend of pairwise_kl: the loss from what the kernels of triton_shared/scores.py find.

With t a logit's distance from the row's largest, and r the deviation of t from its mean over the group, the loss is
Σ_i Σ_v p_i(v) r_i(v) / (B (N − 1)).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.triton_shared import launch, scores
from plr_kernels.triton_shared.helpers import LN_2, LOWEST
from plr_kernels.triton_shared.scores import (
    DIVERGENCE_STATISTICS,
    NO_ITEM,
    Columns,
    Group,
    PartialDivergence,
    merge,
    no_items,
    off_group_mean,
    statistics_columns,
    tile_rows,
)


@triton.jit
def _load_parts(parts, argmaxes, part, offsets, exists, group):
    """The PartialDivergence of each row, [R], from those of several parts of the items, [R, BLOCK_S].

    All with the distances from the largest maximum: the part that has it stays as it is, the others are added to it
    with their argmaxes, as `merge` does with two.
    """
    m = tl.load(parts + offsets, mask=exists, other=LOWEST)
    total = tl.load(parts + part + offsets, mask=exists, other=0.0)
    deviation = tl.load(parts + 2 * part + offsets, mask=exists, other=0.0)
    argmax_r = tl.load(parts + 3 * part + offsets, mask=exists, other=0.0)
    argmax = tl.load(argmaxes + offsets, mask=exists, other=0)
    m_new, winner = tl.max(m, 1, return_indices=True)
    is_winner = tl.arange(0, exists.shape[1])[None, :] == winner[:, None]
    fall = tl.where(exists, m - m_new[:, None], 0.0)
    argmax_r += off_group_mean(fall, group, 0)
    winner_r = tl.sum(tl.where(is_winner, argmax_r, 0.0), 1)
    shrink = tl.where(exists, tl.exp2(fall), 0.0)
    lower_total = (1.0 + total) * shrink
    lower_deviation = deviation * shrink + lower_total * (argmax_r - winner_r[:, None])
    deviation = tl.sum(tl.where(is_winner, deviation, lower_deviation), 1)
    total = tl.sum(tl.where(is_winner, total, lower_total), 1)
    return PartialDivergence(m_new, total, deviation, winner_r, tl.sum(tl.where(is_winner, argmax, 0), 1))


@triton.jit(do_not_specialize=["parts_count", "B", "N"])
def _statistics_kernel(
    parts,
    argmaxes,
    statistics,
    inverse_group,
    parts_count,
    B,
    N,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The statistics of every row from those of parts of the items, `BLOCK_S` parts at a time."""
    _, _, row_exists, rows = tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    all_rows = tl.cast(B, tl.int64) * N
    row = no_items(BLOCK_R)
    for start in range(0, parts_count, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        exists = row_exists[:, None] & (numbers < parts_count)[None, :]  # [R, BLOCK_S]
        offsets = numbers.to(tl.int64)[None, :] * all_rows + rows[:, None]
        block = _load_parts(
            parts, argmaxes, parts_count * all_rows, offsets, exists, Group(inverse_group, N, GROUP, PADDED)
        )
        row = merge(row, block, Group(inverse_group, N, GROUP, PADDED))
    argmax_deviation = row.deviation / (1.0 + row.total)
    grouped = tl.reshape(row.argmax, [BLOCK_R // GROUP, GROUP])
    members = tl.arange(0, GROUP)[None, :]
    first = tl.sum(tl.where(members == 0, grouped, 0), 1, keep_dims=True)
    differ = tl.max(((grouped != first) & (members < N)).to(tl.int32), 1, keep_dims=True)
    shared = tl.reshape(tl.where(differ == 0, first, NO_ITEM) + tl.zeros_like(grouped), [BLOCK_R])
    row_stats, column = statistics + rows * DIVERGENCE_STATISTICS, statistics_columns()
    tl.store(row_stats + column.maximum, row.m, mask=row_exists)
    tl.store(row_stats + column.inverse_sum, 1.0 / (1.0 + row.total), mask=row_exists)
    tl.store(row_stats + column.prob_of_rest, row.total / (1.0 + row.total), mask=row_exists)
    tl.store(row_stats + column.entry, row.argmax.to(tl.float32, bitcast=True), mask=row_exists)
    tl.store(row_stats + column.mean_deviation, row.argmax_r + argmax_deviation, mask=row_exists)
    tl.store(row_stats + column.argmax_deviation, argmax_deviation, mask=row_exists)
    tl.store(row_stats + column.shared_argmax, shared.to(tl.float32, bitcast=True), mask=row_exists)
    tl.store(row_stats + (DIVERGENCE_STATISTICS - 1), tl.zeros_like(row.m), mask=row_exists)  # not read


def new_statistics(states: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for what is kept for the backward pass: statistics [B, N, 8], which hold the argmaxes, and nothing."""
    return (
        states.new_empty((*states.shape[:2], DIVERGENCE_STATISTICS.value), dtype=torch.float32),
        states.new_empty((0,), dtype=torch.int64),
    )


def forward(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the backward pass, the two of `new_statistics`."""
    batch, group, _ = states.shape
    statistics, no_argmaxes = new_statistics(states)
    if batch == 0 or group == 1:
        return statistics.new_zeros(()), statistics.zero_(), no_argmaxes
    parts, argmaxes = scores.forward(states, items, temperature, None, 0)
    options = launch.statistics(group)
    with torch.cuda.device_of(states):
        _statistics_kernel[(launch.blocks(batch, options["BLOCK_R"] // options["GROUP"]),)](
            parts,
            argmaxes,
            statistics,
            1 / group,
            parts.shape[1],
            batch,
            group,
            PADDED=group != options["GROUP"],
            **options,
        )
    return (
        statistics[..., Columns._fields.index("mean_deviation")].sum() * (LN_2.value / (batch * (group - 1))),
        statistics,
        no_argmaxes,
    )


def backward(
    loss_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    no_argmaxes: Tensor,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, ...]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    batch, group, _ = states.shape
    if batch == 0 or group == 1:
        return tuple(gradient.zero_() for gradient in new_gradients((states, items), (needs_states, needs_items)))
    return scores.backward(
        states,
        items,
        statistics.contiguous(),
        None,
        loss_gradient,
        1 / (batch * (group - 1)),
        temperature,
        detach_reference,
        needs_states,
        needs_items,
    )
