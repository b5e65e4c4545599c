"""The "triton" backend of linear_cross_entropy: the loss from what the kernels of triton_shared/scores.py find."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.triton_shared import launch, scores
from plr_kernels.triton_shared.helpers import LN_2, LOG2_E, LOWEST, Strided, load_tile, merge_partial_softmax, strided
from plr_kernels.triton_shared.scores import (
    CROSS_ENTROPY_STATISTICS,
    NO_ITEM,
    statistics_columns,
)


@triton.jit(do_not_specialize=["ignore_index", "parts_count", "R", "V"])
def _loss_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    parts,
    statistics,
    losses,
    scale,
    parts_count,
    R,
    V,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """−log p(target) of each row, and its statistics, from maximum and sum over parts of all items but the target.

    The target's score is D products, computed in float32 whatever the precision.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < R
    target = tl.load(targets + rows, mask=mask, other=ignore_index)
    counted = target != ignore_index
    tl.device_assert((counted == 0) | ((target >= 0) & (target < V)), "targets must be in [0, V) or ignore_index")
    score = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = counted[:, None] & (columns < D)[None, :]
        h = load_tile(states.data, rows, states.strides[0], columns, states.strides[1], inside)
        e = load_tile(items.data, target, items.strides[0], columns, items.strides[1], inside)
        score += tl.sum(h.to(tl.float32) * e.to(tl.float32), 1)
    # An ignored row has no target: all of its sum is that of the rest.
    score = tl.where(counted, score * scale, LOWEST)
    rest_m, rest_sum = merge_partial_softmax(parts, parts_count, tl.cast(R, tl.int64), rows, mask, 1.0, BLOCK_S)
    m = tl.maximum(rest_m, score)
    rest_sum *= tl.exp2(rest_m - m)
    total = rest_sum + tl.exp2(score - m)
    loss = ((m - score) + tl.log2(total)) * LN_2
    tl.store(losses + rows, tl.where(counted, loss, 0.0), mask=mask)
    row_stats, column = statistics + rows * CROSS_ENTROPY_STATISTICS, statistics_columns()
    tl.store(row_stats + column.maximum, m, mask=mask)
    tl.store(row_stats + column.inverse_sum, 1.0 / total, mask=mask)
    tl.store(row_stats + column.prob_of_rest, rest_sum / total, mask=mask)
    entry = tl.where(counted, target, NO_ITEM).to(tl.int32)
    tl.store(row_stats + column.entry, entry.to(tl.float32, bitcast=True), mask=mask)


def new_statistics(states: Tensor) -> Tensor:
    """Memory for what is kept of every row's distribution for the backward pass: float32 [R, 4]."""
    return states.new_empty((states.shape[0], CROSS_ENTROPY_STATISTICS.value), dtype=torch.float32)


def forward(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The losses [R] and, for the backward pass, the statistics."""
    rows, dim = states.shape
    losses = states.new_empty((rows,), dtype=torch.float32)
    statistics = new_statistics(states)
    if rows == 0:
        return losses, statistics
    targets = targets.contiguous()
    parts, _ = scores.forward(states.unsqueeze(1), items, temperature, targets, ignore_index)
    options = launch.row_losses(dim)
    with torch.cuda.device_of(states):
        _loss_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            *strided(states),
            *strided(items),
            targets,
            ignore_index,
            parts,
            statistics,
            losses,
            LOG2_E / temperature,
            parts.shape[1],
            rows,
            items.shape[0],
            D=dim,
            **options,
        )
    return losses, statistics


def backward(
    losses_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    statistics: Tensor,
    temperature: float,
    ignore_index: int,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, ...]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    if states.shape[0] == 0:
        return tuple(gradient.zero_() for gradient in new_gradients((states, items), (needs_states, needs_items)))
    weights, largest = losses_gradient, None
    if states.dtype == torch.float16:
        # Weights of a mean over many rows are too small for float16: the largest becomes 1, and multiplies the sums.
        weights = torch.where(targets == ignore_index, 0.0, losses_gradient)
        largest = weights.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        weights = weights / largest
    states_gradient, items_gradient = scores.backward(
        states.unsqueeze(1),
        items,
        statistics.contiguous().unsqueeze(1),
        weights,
        largest,
        1.0,
        temperature,
        False,
        needs_states,
        needs_items,
    )
    return states_gradient.squeeze(1) if needs_states else states_gradient, items_gradient
