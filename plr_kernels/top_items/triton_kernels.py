"""The "triton" backend of top_items.

A program scores its part of the items block by block for a block of rows, and keeps each row's best in registers: as
one int64 per item, the score's rank above the complement of the id, so that the larger number is the better item and
ties go to the smaller id. Ranks are int32 and ordered as scores are, NaN above all: of floating numbers a GPU's maximum
skips NaN, and an item that is NaN would be left out in silence. Blocks of items come in ascending order, so only a
score above the worst kept one can enter; few blocks hold one, the others cost a product and a comparison.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.checks import check_exclude
from plr_kernels.dispatch.precision import upcast
from plr_kernels.top_items import reference
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import dot_precision, load_tile, strided

# A row's list lies in registers. For longer lists the blockwise formula of reference.py runs, on the GPU as well.
LARGEST_K = 128
# The key of an empty slot, below that of every item.
_EMPTY_SLOT = tl.constexpr(-(2**63))
# The rank of −inf, which is no candidate.
_LOWEST_RANK = tl.constexpr(0x807FFFFF - 2**32)


class _Exclusion(NamedTuple):
    """The ids [R, X] that rows must not return: address, strides, X."""

    data: Any
    row_stride: Any
    column_stride: Any
    count: Any


@triton.jit
def _ranks(scores):
    """int32 numbers in the order of the scores, −0 as 0 and NaN above all."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(scores != scores, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _load_excluded(exclusion, rows, row_mask, first, BLOCK_X: tl.constexpr):
    """Excluded ids [rows, BLOCK_X] of each row, from number `first` on."""
    columns = first + tl.arange(0, BLOCK_X)
    offsets = rows[:, None] * exclusion.row_stride + columns.to(tl.int64)[None, :] * exclusion.column_stride
    mask = row_mask[:, None] & (columns < exclusion.count)[None, :]
    return tl.load(exclusion.data + offsets, mask=mask, other=-1)


@triton.jit
def _is_not_excluded(exclusion, rows, row_mask, candidates, BLOCK_X: tl.constexpr):
    """Whether each row's list of excluded ids lacks the row's candidate."""
    found = tl.zeros([rows.shape[0]], tl.int32)
    for first in range(0, exclusion.count, BLOCK_X):
        ids = _load_excluded(exclusion, rows, row_mask, first, BLOCK_X)
        found = tl.maximum(found, tl.max((ids == candidates[:, None]).to(tl.int32), 1))
    return found == 0  # not ~: the interpreter of Triton 3.3 cannot negate


@triton.jit(do_not_specialize=["exclude_row_stride", "per_split", "R", "V", "X", "K"])
def _best_kernel(
    states,
    items,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    keys,
    per_split,
    R,
    V,
    X,
    K,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The keys of the K best of a part of the items (`per_split` blocks), in no order: keys [R, splits, K]."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    slots = tl.arange(0, BLOCK_K)
    # Slots beyond K count as taken by something better than any item.
    best = tl.zeros([BLOCK_R, BLOCK_K], tl.int64) + tl.where(slots < K, _EMPTY_SLOT, -1 - _EMPTY_SLOT)[None, :]
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        for first_column in range(0, D, BLOCK_D):
            columns = first_column + tl.arange(0, BLOCK_D)
            h_mask, e_mask = row_mask[:, None] & (columns < D)[None, :], item_mask[:, None] & (columns < D)[None, :]
            h = load_tile(states.data, rows, states.strides[0], columns, states.strides[1], h_mask)
            e = load_tile(items.data, numbers, items.strides[0], columns, items.strides[1], e_mask)
            scores = tl.dot(h, tl.trans(e), acc=scores, input_precision=PRECISION)
        ranks = tl.where(row_mask[:, None] & item_mask[None, :], _ranks(scores), _LOWEST_RANK)
        highest = tl.max(ranks, 1)
        # Ids only grow: a score as good as the worst kept one comes too late.
        enters = (highest > _LOWEST_RANK) & (highest > tl.min(best, 1) >> 32)
        while tl.max(enters.to(tl.int32), 0) > 0:
            item = start + tl.argmax(ranks, 1)
            taken = enters
            if exclude is not None:
                exclusion = _Exclusion(exclude, exclude_row_stride, exclude_column_stride, X)
                taken &= _is_not_excluded(exclusion, rows, row_mask, item, BLOCK_X)
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


@triton.jit(do_not_specialize=["keys_stride", "exclude_row_stride", "R", "V", "X", "K"])
def _results_kernel(
    keys,
    keys_stride,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    scores,
    ids,
    R,
    V,
    X,
    K,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Scores and ids [R, K] of the first K keys of each row; −inf and −1 for empty slots."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    if exclude is not None:
        exclusion = _Exclusion(exclude, exclude_row_stride, exclude_column_stride, X)
        for first in range(0, X, BLOCK_X):
            excluded = _load_excluded(exclusion, rows, rows < R, first, BLOCK_X)
            tl.device_assert((excluded >= -1) & (excluded < V), "exclude must be in [0, V), or -1 as padding")
    slots = tl.arange(0, BLOCK_K)
    mask = (rows < R)[:, None] & (slots < K)[None, :]
    best = tl.load(keys + rows[:, None] * keys_stride + slots[None, :], mask=mask, other=_EMPTY_SLOT)
    ranks = (best >> 32).to(tl.int32)
    rank_scores = tl.where(ranks < 0, ranks ^ 0x7FFFFFFF, ranks).to(tl.float32, bitcast=True)
    is_empty = best == _EMPTY_SLOT
    offsets = rows[:, None] * K + slots[None, :]
    tl.store(scores + offsets, tl.where(is_empty, float("-inf"), rank_scores), mask=mask)
    tl.store(ids + offsets, tl.where(is_empty, -1, 0xFFFFFFFF - (best & 0xFFFFFFFF)), mask=mask)


def forward(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    if k > LARGEST_K:
        check_exclude(exclude, items.shape[0])
        return reference.top_items(upcast(states), upcast(items), k, exclude)
    rows, dim = states.shape
    vocabulary = items.shape[0]
    scores = states.new_empty((rows, k), dtype=torch.float32)
    ids = states.new_empty((rows, k), dtype=torch.int64)
    if rows == 0:
        return scores, ids
    options = launch.top_items(rows, k, states.element_size())
    row_blocks = launch.blocks(rows, options["BLOCK_R"])
    item_blocks = launch.blocks(vocabulary, options["BLOCK_V"])
    per_split, splits = launch.split(item_blocks, row_blocks, launch.GRADIENT_PROGRAMS)
    keys = states.new_empty((rows, splits * k), dtype=torch.int64)
    exclusion = (exclude, *((0, 0) if exclude is None else exclude.stride()))
    excluded = 0 if exclude is None else exclude.shape[1]
    with torch.cuda.device_of(states):
        _best_kernel[(row_blocks, splits)](
            strided(states),
            strided(items),
            *exclusion,
            keys,
            per_split,
            rows,
            vocabulary,
            excluded,
            k,
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
        keys = keys.sort(dim=1, descending=True).values
        options = launch.top_results(k)
        _results_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            keys, keys.stride(0), *exclusion, scores, ids, rows, vocabulary, excluded, k, **options
        )
    return scores, ids
