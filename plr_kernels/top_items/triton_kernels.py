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

from plr_kernels.dispatch.checks import check_exclude
from plr_kernels.dispatch.precision import upcast
from plr_kernels.dispatch.results import new_lists
from plr_kernels.top_items import reference
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LOWEST, Strided, dot_precision, part_of_items, strided
from plr_kernels.triton_shared.ranking import (
    Exclusion,
    check_excluded,
    dot_products,
    excluded_columns,
    exclusion_arguments,
    load_excluded,
    mask_argument,
    store_softmax,
    update_softmax,
    vector_offsets,
)

# A row's list lies in registers. For longer lists the blockwise formula of reference.py runs, on the GPU as well.
LARGEST_K = 128
# The key of an empty slot, below that of every item.
EMPTY_SLOT = tl.constexpr(-(2**63))
# The rank of −inf, which is no candidate.
LOWEST_RANK = tl.constexpr(0x807FFFFF - 2**32)


@triton.jit
def ranks_of(scores):
    """int32 numbers in the order of the scores, −0 as 0 and NaN above all."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(scores != scores, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _is_not_excluded(exclusion, rows, row_mask, candidates, BLOCK_X: tl.constexpr):
    """Whether each row's list of excluded ids lacks the row's candidate."""
    found = tl.zeros([rows.shape[0]], tl.int32)
    for first in range(0, exclusion.count, BLOCK_X):
        ids = load_excluded(exclusion, rows, row_mask, first, BLOCK_X)
        found = tl.maximum(found, tl.max((ids == candidates[:, None]).to(tl.int32), 1))
    return found == 0  # not ~: the interpreter of Triton 3.3 cannot negate


@triton.jit
def may_be_listed(where, numbers, item_mask):
    """Which of some items there are, by their mask, and are allowed by `where`, one byte an item."""
    return item_mask & (tl.load(where + numbers, mask=item_mask, other=0) != 0)


@triton.jit
def keep_best(best, ranks, start, exclusion, rows, row_mask, BLOCK_X: tl.constexpr):
    """The lists `best` of keys [rows, slots], with what belongs there of a tile of ranks [rows, items].

    The tile's items begin at number `start`, after all those that the lists have seen.
    """
    numbers = start + tl.arange(0, ranks.shape[1])
    slots = tl.arange(0, best.shape[1])
    highest = tl.max(ranks, 1)
    # Ids only grow: a score as good as the worst kept one comes too late.
    enters = (highest > LOWEST_RANK) & (highest > tl.min(best, 1) >> 32)
    while tl.max(enters.to(tl.int32), 0) > 0:
        item = start + tl.argmax(ranks, 1)
        taken = enters
        if exclusion.data is not None:
            taken &= _is_not_excluded(exclusion, rows, row_mask, item, BLOCK_X)
        key = (highest.to(tl.int64) << 32) | (0xFFFFFFFF - item.to(tl.int64))
        # Keys differ, but for empty slots: of these any one.
        slot = tl.argmin(best, 1)
        replaced = taken[:, None] & (slots[None, :] == slot[:, None])
        best = tl.where(replaced, key[:, None], best)
        ranks = tl.where(numbers[None, :] == item[:, None], LOWEST_RANK, ranks)
        highest = tl.max(ranks, 1)
        enters = (highest > LOWEST_RANK) & (highest > tl.min(best, 1) >> 32)
    return best


@triton.jit
def empty_lists(K, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Lists [BLOCK_R, BLOCK_K] of K empty slots; what is beyond K counts as taken by something better than any item."""
    slots = tl.arange(0, BLOCK_K)
    return tl.zeros([BLOCK_R, BLOCK_K], tl.int64) + tl.where(slots < K, EMPTY_SLOT, -1 - EMPTY_SLOT)[None, :]


@triton.jit(do_not_specialize=["exclude_row_stride", "per_split", "R", "M", "V", "X", "K"])
def _best_kernel(
    states,
    states_strides,
    items,
    items_strides,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    where,
    keys,
    softmax_parts,
    scale,
    per_split,
    R,
    M,
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
    """The keys of the K best of a part of the items (`per_split` blocks), in no order: keys [R · M, splits, K].

    All states [R, M, D] have lists of their own; those of a row share its excluded ids, and all the mask `where`, one
    byte an item, of those that may be listed. Where there are softmax_parts,
    [2, splits, R · M], they get what `update_softmax` finds.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    states_count = tl.cast(R, tl.int64) * M
    numbers_of_states = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    state_mask = numbers_of_states < states_count
    rows = numbers_of_states // M
    vectors = vector_offsets(states, rows, numbers_of_states % M)
    best = empty_lists(K, BLOCK_R, BLOCK_K)
    peak = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    first, last = part_of_items(per_split, V, BLOCK_V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores = dot_products(states, vectors, state_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        if softmax_parts is not None:
            peak, total = update_softmax(peak, total, scores, item_mask, scale)
        if where is not None:
            item_mask = may_be_listed(where, numbers, item_mask)
        ranks = tl.where(state_mask[:, None] & item_mask[None, :], ranks_of(scores), LOWEST_RANK)
        best = keep_best(
            best,
            ranks,
            start,
            Exclusion(exclude, exclude_row_stride, exclude_column_stride, X),
            rows,
            state_mask,
            BLOCK_X,
        )
    slots = tl.arange(0, BLOCK_K)
    offsets = (numbers_of_states * tl.num_programs(1) + tl.program_id(1))[:, None] * K + slots[None, :]
    tl.store(keys + offsets, best, mask=state_mask[:, None] & (slots < K)[None, :])
    if softmax_parts is not None:
        store_softmax(softmax_parts, states_count, numbers_of_states, state_mask, peak, total)


@triton.jit
def scores_of(keys):
    """The scores of keys, −inf of an empty slot."""
    ranks = (keys >> 32).to(tl.int32)
    scores = tl.where(ranks < 0, ranks ^ 0x7FFFFFFF, ranks).to(tl.float32, bitcast=True)
    return tl.where(keys == EMPTY_SLOT, float("-inf"), scores)


@triton.jit
def ids_of(keys):
    """The ids of keys, −1 of an empty slot."""
    return tl.where(keys == EMPTY_SLOT, -1, 0xFFFFFFFF - (keys & 0xFFFFFFFF))


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
        exclusion = Exclusion(exclude, exclude_row_stride, exclude_column_stride, X)
        check_excluded(exclusion, rows, rows < R, V, BLOCK_X)
    slots = tl.arange(0, BLOCK_K)
    mask = (rows < R)[:, None] & (slots < K)[None, :]
    best = tl.load(keys + rows[:, None] * keys_stride + slots[None, :], mask=mask, other=EMPTY_SLOT)
    offsets = rows[:, None] * K + slots[None, :]
    tl.store(scores + offsets, scores_of(best), mask=mask)
    tl.store(ids + offsets, ids_of(best), mask=mask)


def sorted_keys(
    states: Tensor,
    items: Tensor,
    k: int,
    exclude: Tensor | None,
    where: Tensor | None,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The keys of the k best items of each state [R, M, D] before others: int64 [R · M, n], n >= k, best first.

    Those of items that `where` allows, if it is given. Where a scale is given, also what `mixture_of_parts` takes.
    """
    rows, streams, dim = states.shape
    vocabulary = items.shape[0]
    options = launch.top_items(rows * streams, k, states.element_size())
    state_blocks, per_split, splits = launch.sweep(rows * streams, vocabulary, options)
    keys = states.new_empty((rows * streams, splits * k), dtype=torch.int64)
    parts = None
    if softmax_scale is not None:
        parts = states.new_empty((2, splits, rows * streams), dtype=torch.float32)
    with torch.cuda.device_of(states):
        _best_kernel[(state_blocks, splits)](
            *strided(states),
            *strided(items),
            *exclusion_arguments(exclude),
            mask_argument(where),
            keys,
            parts,
            1.0 if softmax_scale is None else softmax_scale,
            per_split,
            rows,
            streams,
            vocabulary,
            excluded_columns(exclude),
            k,
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
    return keys.sort(dim=1, descending=True).values, parts


def results(keys: Tensor, k: int, vocabulary: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and ids [R, k] of the first k keys of each row; checks the excluded ids."""
    rows = keys.shape[0]
    scores, ids = new_lists(keys, k)
    options = launch.top_results(k)
    with torch.cuda.device_of(keys):
        _results_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            keys,
            keys.stride(0),
            *exclusion_arguments(exclude),
            scores,
            ids,
            rows,
            vocabulary,
            excluded_columns(exclude),
            k,
            **options,
        )
    return scores, ids


def forward(
    states: Tensor, items: Tensor, k: int, exclude: Tensor | None, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    if k > LARGEST_K:
        check_exclude(exclude, items.shape[0])
        return reference.top_items(upcast(states), upcast(items), k, exclude, where)
    if states.shape[0] == 0:
        return new_lists(states, k)
    keys, _ = sorted_keys(states.unsqueeze(1), items, k, exclude, where)
    return results(keys, k, items.shape[0], exclude)
