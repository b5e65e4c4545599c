"""The "triton" backend of pairwise_kl: the loss from what the kernels of triton_shared/scores.py find.

With t a logit's distance from the row's largest, and r the deviation of t from its mean over the group, the loss is
Σ_i Σ_v p_i(v) r_i(v) / (B (N − 1)).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch, scores
from plr_kernels.triton_shared.helpers import LN_2, new_gradient
from plr_kernels.triton_shared.scores import DIVERGENCE_STATISTICS, NO_ITEM, join, off_group_mean, tile_rows

_STATISTICS = tl.constexpr(DIVERGENCE_STATISTICS)


@triton.jit(do_not_specialize=["parts_count", "B", "N"])
def _statistics_kernel(
    parts,
    tops,
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
    part = parts_count * all_rows
    maximum = tl.full([BLOCK_R], -3.4028234663852886e38, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    deviation = tl.zeros([BLOCK_R], tl.float32)
    at_top = tl.zeros([BLOCK_R], tl.float32)
    top = tl.zeros([BLOCK_R], tl.int32)
    for start in range(0, parts_count, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        exists = row_exists[:, None] & (numbers < parts_count)[None, :]
        offsets = numbers.to(tl.int64)[None, :] * all_rows + rows[:, None]
        maxima = tl.load(parts + offsets, mask=exists, other=-3.4028234663852886e38)
        totals = tl.load(parts + part + offsets, mask=exists, other=0.0)
        deviations = tl.load(parts + 2 * part + offsets, mask=exists, other=0.0)
        at_tops = tl.load(parts + 3 * part + offsets, mask=exists, other=0.0)
        of_tops = tl.load(tops + offsets, mask=exists, other=0)
        highest, best = tl.max(maxima, 1, return_indices=True)
        is_best = tl.arange(0, BLOCK_S)[None, :] == best[:, None]
        fall = tl.where(exists, maxima - highest[:, None], 0.0)
        at_tops += off_group_mean(fall, inverse_group, N, GROUP, 0, PADDED)
        at_best = tl.sum(tl.where(is_best, at_tops, 0.0), 1)
        shrink = tl.where(exists, tl.exp2(fall), 0.0)
        lower = (1.0 + totals) * shrink
        highest_deviation = tl.sum(
            tl.where(is_best, deviations, deviations * shrink + lower * (at_tops - at_best[:, None])), 1
        )
        maximum, total, deviation, at_top, top = join(
            maximum,
            total,
            deviation,
            at_top,
            top,
            highest,
            tl.sum(tl.where(is_best, totals, lower), 1),
            highest_deviation,
            at_best,
            tl.sum(tl.where(is_best, of_tops, 0), 1),
            inverse_group,
            N,
            GROUP,
            PADDED,
        )
    top_deviation = deviation / (1.0 + total)
    grouped = tl.reshape(top, [BLOCK_R // GROUP, GROUP])
    members = tl.arange(0, GROUP)[None, :]
    first = tl.sum(tl.where(members == 0, grouped, 0), 1, keep_dims=True)
    differ = tl.max(((grouped != first) & (members < N)).to(tl.int32), 1, keep_dims=True)
    shared = tl.reshape(tl.where(differ == 0, first, NO_ITEM) + tl.zeros_like(grouped), [BLOCK_R])
    of_rows = statistics + rows * _STATISTICS
    tl.store(of_rows, maximum, mask=row_exists)
    tl.store(of_rows + 1, 1.0 / (1.0 + total), mask=row_exists)
    tl.store(of_rows + 2, total / (1.0 + total), mask=row_exists)
    tl.store(of_rows + 3, top.to(tl.float32, bitcast=True), mask=row_exists)
    tl.store(of_rows + 4, at_top + top_deviation, mask=row_exists)
    tl.store(of_rows + 5, top_deviation, mask=row_exists)
    tl.store(of_rows + 6, shared.to(tl.float32, bitcast=True), mask=row_exists)
    tl.store(of_rows + 7, tl.zeros_like(maximum), mask=row_exists)  # not read


def new_statistics(states: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for what is kept for the backward pass: statistics [B, N, 8], which hold the tops, and nothing."""
    return (
        states.new_empty((*states.shape[:2], DIVERGENCE_STATISTICS), dtype=torch.float32),
        states.new_empty((0,), dtype=torch.int64),
    )


def forward(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the backward pass, the two of `new_statistics`."""
    batch, group, _ = states.shape
    statistics, no_tops = new_statistics(states)
    if batch == 0 or group == 1:
        return statistics.new_zeros(()), statistics.zero_(), no_tops
    parts, tops = scores.forward(states, items, temperature, None, 0)
    options = launch.statistics(group)
    with torch.cuda.device_of(states):
        _statistics_kernel[(launch.blocks(batch, options["BLOCK_R"] // options["GROUP"]),)](
            parts,
            tops,
            statistics,
            1 / group,
            parts.shape[1],
            batch,
            group,
            PADDED=group != options["GROUP"],
            **options,
        )
    return statistics[..., 4].sum() * (LN_2 / (batch * (group - 1))), statistics, no_tops


def backward(
    loss_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    no_tops: Tensor,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    batch, group, _ = states.shape
    if batch == 0 or group == 1:
        return new_gradient(states, needs_states).zero_(), new_gradient(items, needs_items).zero_()
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
