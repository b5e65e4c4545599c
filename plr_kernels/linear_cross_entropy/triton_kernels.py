"""The "triton" backend of linear_cross_entropy: the kernels of score_kernels.py, and the loss from their statistics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels import launch, score_kernels
from plr_kernels.triton_common import LN_2, LOG2_E, load_tile, new_gradient

_LN_2 = tl.constexpr(LN_2)


@triton.jit(do_not_specialize=["R"])
def _loss_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    others,
    statistics,
    losses,
    scale,
    R,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """−log p(target) of each row, and its statistics, from the maximum and the sum over all items but the target.

    The target's score is D products, computed in float32 whatever the precision.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < R
    target = tl.load(targets + rows, mask=mask, other=-1)
    counted = target >= 0
    score = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = counted[:, None] & (columns < D)[None, :]
        h = load_tile(states, rows, states_strides[0], columns, states_strides[1], inside)
        e = load_tile(items, target, items_strides[0], columns, items_strides[1], inside)
        score += tl.sum(h.to(tl.float32) * e.to(tl.float32), 1)
    # An ignored row has no target: all of its sum is that of others.
    score = tl.where(counted, score * scale, -3.4028234663852886e38)
    others_maximum = tl.load(others + rows, mask=mask, other=0.0)
    maximum = tl.maximum(others_maximum, score)
    others_sum = tl.load(others + rows + R, mask=mask, other=1.0) * tl.exp2(others_maximum - maximum)
    total = others_sum + tl.exp2(score - maximum)
    loss = ((maximum - score) + tl.log2(total)) * _LN_2
    tl.store(losses + rows, tl.where(counted, loss, 0.0), mask=mask)
    tl.store(statistics + rows, maximum, mask=mask)
    tl.store(statistics + rows + R, 1.0 / total, mask=mask)
    tl.store(statistics + rows + 2 * tl.cast(R, tl.int64), others_sum / total, mask=mask)


def _counted(targets: Tensor, ignore_index: int) -> Tensor:
    """The targets, −1 for ignored rows: these are not even read."""
    return torch.where(targets == ignore_index, -1, targets).contiguous()


def forward(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The losses [R] and, for the backward pass, statistics [3, R] of every row's distribution."""
    rows, dim = states.shape
    losses = states.new_empty((rows,), dtype=torch.float32)
    statistics = states.new_empty((3, rows), dtype=torch.float32)
    if rows == 0:
        return losses, statistics
    targets = _counted(targets, ignore_index)
    others, _ = score_kernels.forward(states.unsqueeze(1), items, temperature, targets)
    options = launch.row_products(dim)
    with torch.cuda.device_of(states):
        _loss_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            states,
            states.stride(),
            items,
            items.stride(),
            targets,
            others,
            statistics,
            losses,
            LOG2_E / temperature,
            rows,
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
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    if states.shape[0] == 0:
        return new_gradient(states, needs_states).zero_(), new_gradient(items, needs_items).zero_()
    weights = torch.where(targets == ignore_index, 0.0, losses_gradient)
    # Weights of a mean over many rows are too small for float16: the largest becomes 1, and multiplies the sums.
    largest = weights.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    states_gradient, items_gradient = score_kernels.backward(
        states.unsqueeze(1),
        items,
        statistics,
        _counted(targets, ignore_index),
        weights / largest,
        largest,
        1.0,
        temperature,
        False,
        needs_states,
        needs_items,
    )
    return states_gradient.squeeze(1) if needs_states else states_gradient, items_gradient
