"""The "triton" backend of top_items.

A program scores its part of the items block by block for a block of rows, and keeps each row's best in registers: as
one int64 per item, the score's rank above the complement of the id, so that the larger number is the better item and
ties go to the smaller id. Ranks are int32 and ordered as scores are, NaN above all: of floating numbers a GPU's maximum
skips NaN, and an item that is NaN would be left out in silence. Blocks of items come in ascending order, so only a
score above the worst kept one can enter; few blocks hold one, the others cost a product and a comparison.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels import launch
from plr_kernels.precision import raised
from plr_kernels.top_items import reference
from plr_kernels.triton_common import dot_precision, load_tile

# A row's list lies in registers. For longer lists the blockwise formula of reference.py runs, on the GPU as well.
LARGEST_K = 128
_LOWEST = -(2**63)
# The rank of −inf, which is no candidate.
_LOWEST_RANK = tl.constexpr(0x807FFFFF - 2**32)


@triton.jit
def _ranks(scores):
    """int32 numbers in the order of the scores, −0 as 0 and NaN above all."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(scores != scores, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _is_not_excluded(exclude, exclude_strides, rows, row_mask, numbers, X, BLOCK_X: tl.constexpr):
    """Whether each row's list of excluded ids lacks the row's candidate."""
    found = tl.zeros([rows.shape[0]], tl.int32)
    for first in range(0, X, BLOCK_X):
        columns = first + tl.arange(0, BLOCK_X)
        offsets = rows[:, None] * exclude_strides[0] + columns.to(tl.int64)[None, :] * exclude_strides[1]
        ids = tl.load(exclude + offsets, mask=row_mask[:, None] & (columns < X)[None, :], other=-1)
        found = tl.maximum(found, tl.max((ids == numbers[:, None]).to(tl.int32), 1))
    return found == 0  # not ~: the interpreter of Triton 3.3 cannot negate


@triton.jit(do_not_specialize=["per_split", "R", "V", "X", "K"])
def _best_kernel(
    states,
    states_strides,
    items,
    items_strides,
    exclude,
    exclude_strides,
    keys,
    per_split,
    R,
    V,
    X,
    K,
    D: tl.constexpr,
    LOWEST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PIECE: tl.constexpr,
):
    """The keys of the K best of a part of the items (`per_split` blocks), in no order: keys [R, splits, K]."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    slots = tl.arange(0, BLOCK_K)
    # Slots beyond K count as taken by something better than any item.
    best = tl.zeros([BLOCK_R, BLOCK_K], tl.int64) + tl.where(slots < K, LOWEST, -1 - LOWEST)[None, :]
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        for first_column in range(0, D, PIECE):
            columns = first_column + tl.arange(0, PIECE)
            inside = (columns < D)[None, :]
            h = load_tile(states, rows, states_strides[0], columns, states_strides[1], row_mask[:, None] & inside)
            e = load_tile(items, numbers, items_strides[0], columns, items_strides[1], item_mask[:, None] & inside)
            scores = tl.dot(h, tl.trans(e), acc=scores, input_precision=PRECISION)
        ranks = tl.where(row_mask[:, None] & item_mask[None, :], _ranks(scores), _LOWEST_RANK)
        highest = tl.max(ranks, 1)
        # Ids only grow: a score as good as the worst kept one comes too late.
        enters = (highest > _LOWEST_RANK) & (highest > tl.min(best, 1) >> 32)
        while tl.max(enters.to(tl.int32), 0) > 0:
            item = start + tl.argmax(ranks, 1)
            taken = enters
            if exclude is not None:
                taken &= _is_not_excluded(exclude, exclude_strides, rows, row_mask, item, X, BLOCK_X)
            key = (highest.to(tl.int64) << 32) | (0xFFFFFFFF - item.to(tl.int64))
            # Keys differ, but for empty slots: of these any one.
            slot = tl.argmin(best, 1)
            replaced = taken[:, None] & (slots[None, :] == slot[:, None])
            best = tl.where(replaced, key[:, None], best)
            ranks = tl.where(numbers[None, :] == item[:, None], _LOWEST_RANK, ranks)
            highest = tl.max(ranks, 1)
            enters = (highest > _LOWEST_RANK) & (highest > tl.min(best, 1) >> 32)
    offsets = (rows * tl.num_programs(1) + tl.program_id(1))[:, None] * K + slots[None, :]
    tl.store(keys + offsets, best, mask=row_mask[:, None] & (slots < K)[None, :])


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of keys; −inf and −1 for empty slots."""
    empty = keys == _LOWEST
    ranks = keys >> 32
    bits = torch.where(ranks < 0, ranks ^ 0x7FFFFFFF, ranks).to(torch.int32)
    ids = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return bits.view(torch.float32).masked_fill(empty, -torch.inf), ids.masked_fill(empty, -1)


def forward(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    if k > LARGEST_K:
        return reference.top_items(raised(states), raised(items), k, exclude)
    rows, dim = states.shape
    vocabulary = items.shape[0]
    options = launch.top_items(rows, k, states.element_size())
    row_blocks = launch.blocks(rows, options["BLOCK_R"])
    per_split, splits = launch.split(
        launch.blocks(vocabulary, options["BLOCK_V"]), max(row_blocks, 1), launch.GRADIENT_PROGRAMS
    )
    keys = torch.empty((rows, splits, k), dtype=torch.int64, device=states.device)
    if rows > 0:
        with torch.cuda.device_of(states):
            _best_kernel[(row_blocks, splits)](
                states,
                states.stride(),
                items,
                items.stride(),
                exclude,
                None if exclude is None else exclude.stride(),
                keys,
                per_split,
                rows,
                vocabulary,
                0 if exclude is None else exclude.shape[1],
                k,
                D=dim,
                LOWEST=_LOWEST,
                PRECISION=dot_precision(),
                **options,
            )
    return _decoded(keys.view(rows, splits * k).sort(dim=1, descending=True).values[:, :k])
