"""The "triton" backend of target_rank: tiles of scores, compared with the targets' own.

A program takes a block of rows and a part of the items. It first scores its rows' targets in a tile of the same shape,
whose diagonal is what the scores of all other tiles are held against. Excluded items are scored again, row by row, and
taken out of the counts; a row's ids are sorted before, so that one that is there twice is taken out once.

Mixtures are ranked by the same kernels (../target_mixture_rank): by probabilities relative to the target's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import Strided, dot_precision, strided
from plr_kernels.triton_shared.ranking import (
    Mixture,
    dot_products,
    is_not_finite,
    log2_probabilities,
    relative_probabilities,
    vector_offsets,
)


@triton.jit
def _tile(
    states,
    mixture,
    reference,
    rows,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What is compared of a tile [rows, items], and where a product is not finite: dot products or probabilities."""
    if mixture.offsets is None:
        vectors = vector_offsets(states, rows, 0)
        scores = dot_products(states, vectors, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        not_finite = is_not_finite(scores)
    else:
        scores, not_finite = relative_probabilities(
            states, mixture, reference, rows, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D
        )
    return scores, not_finite


@triton.jit(do_not_specialize=["scale", "per_split", "R", "M", "V"])
def _counts_kernel(
    states,
    states_strides,
    offsets,
    items,
    items_strides,
    targets,
    target_scores,
    references,
    parts,
    scale,
    per_split,
    R,
    M,
    V,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of a part of the items (`per_split` blocks): parts int32 [3, splits, R].

    How many others score above the target, how many the same, and whether there is a score that is not finite.
    target_scores and references [R]: what `_tile` gives for the targets and, for mixtures, takes. BLOCK_R <= BLOCK_V.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    local = tl.arange(0, BLOCK_R)
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_R
    rows = first_row + local
    row_mask = rows < R
    # The targets of the block's rows, as the items of a tile: a row's own is on the diagonal.
    places = tl.arange(0, BLOCK_V)
    exists = (places < BLOCK_R) & (first_row + places < R)
    wanted = tl.load(targets + first_row + places, mask=exists, other=-1)
    exists &= (wanted >= 0) & (wanted < V)
    is_own = local[:, None] == places[None, :]
    reference = tl.zeros([BLOCK_R], tl.float32)
    if offsets is not None:
        scores = log2_probabilities(
            states, Mixture(offsets, M, scale), rows, row_mask, items, wanted, exists, D, PRECISION, BLOCK_D
        )
        reference = tl.sum(tl.where(is_own, scores, 0.0), 1)
        tl.store(references + rows, reference, mask=row_mask)  # the same number in every part
    scores, _ = _tile(
        states, Mixture(offsets, M, scale), reference, rows, row_mask, items, wanted, exists, D, PRECISION, BLOCK_D
    )
    own = tl.sum(tl.where(is_own, scores, 0.0), 1)
    tl.store(target_scores + rows, own, mask=row_mask)

    target = tl.load(targets + rows, mask=row_mask, other=-1).to(tl.int32)
    greater = tl.zeros([BLOCK_R], tl.int32)
    equal = tl.zeros([BLOCK_R], tl.int32)
    wrong = is_not_finite(own)
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores, not_finite = _tile(
            states,
            Mixture(offsets, M, scale),
            reference,
            rows,
            row_mask,
            items,
            numbers,
            item_mask,
            D,
            PRECISION,
            BLOCK_D,
        )
        others = item_mask[None, :] & (numbers[None, :] != target[:, None])
        greater += tl.sum((others & (scores > own[:, None])).to(tl.int32), 1)
        equal += tl.sum((others & (scores == own[:, None])).to(tl.int32), 1)
        wrong = tl.maximum(wrong, tl.max(tl.where(item_mask[None, :], not_finite, 0), 1))
    part = tl.num_programs(1).to(tl.int64) * R
    place = parts + tl.program_id(1).to(tl.int64) * R + rows
    tl.store(place, greater, mask=row_mask)
    tl.store(place + part, equal, mask=row_mask)
    tl.store(place + 2 * part, wrong, mask=row_mask)


@triton.jit(do_not_specialize=["scale", "R", "M", "V", "X"])
def _excluded_kernel(
    states,
    states_strides,
    offsets,
    items,
    items_strides,
    targets,
    target_scores,
    references,
    parts,
    exclude,
    scale,
    R,
    M,
    V,
    X,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of some of a row's excluded ids, sorted [R, X]: parts int32 [2, blocks of X, R], how many were counted."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    local = tl.arange(0, BLOCK_R)
    row = tl.program_id(0).to(tl.int64)
    rows = row + local * 0  # all the same: a tile of the same shape as those of the counts
    row_mask = rows < R
    places = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    exists = places < X
    numbers = tl.load(exclude + row * X + places, mask=exists, other=-1)
    previous = tl.load(exclude + row * X + places - 1, mask=exists & (places > 0), other=-1)
    target, own = tl.load(targets + row), tl.load(target_scores + row)
    exists &= (numbers >= 0) & (numbers < V)
    reference = tl.zeros([BLOCK_R], tl.float32)
    if offsets is not None:
        reference = tl.load(references + rows)
    scores, _ = _tile(
        states, Mixture(offsets, M, scale), reference, rows, row_mask, items, numbers, exists, D, PRECISION, BLOCK_D
    )
    scores = tl.sum(tl.where(local[:, None] == 0, scores, 0.0), 0)
    counted = exists & (numbers != previous) & (numbers != target)
    place = parts + tl.program_id(1).to(tl.int64) * R + row
    tl.store(place, tl.sum((counted & (scores > own)).to(tl.int32), 0))
    tl.store(place + tl.num_programs(1).to(tl.int64) * R, tl.sum((counted & (scores == own)).to(tl.int32), 0))


@triton.jit
def _total(parts, count, R, rows, row_mask, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr):
    """The sum over the parts [count, R] of each row, int64."""
    total = tl.zeros([BLOCK_R], tl.int64)
    for start in range(0, count, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        mask = row_mask[:, None] & (numbers < count)[None, :]
        found = tl.load(parts + numbers.to(tl.int64)[None, :] * R + rows[:, None], mask=mask, other=0)
        total += tl.sum(found.to(tl.int64), 1)
    return total


@triton.jit(do_not_specialize=["count", "excluded_count", "R", "V", "X"])
def _totals_kernel(
    targets,
    exclude,
    parts,
    excluded,
    greater,
    equal,
    count,
    excluded_count,
    R,
    V,
    X,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """The counts of each row, int64 [R], from those of all parts."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    target = tl.load(targets + rows, mask=row_mask, other=0)
    tl.device_assert((target >= 0) & (target < V), "targets must be in [0, V)")
    part = tl.cast(count, tl.int64) * R
    above = _total(parts, count, R, rows, row_mask, BLOCK_R, BLOCK_S)
    same = _total(parts + part, count, R, rows, row_mask, BLOCK_R, BLOCK_S)
    wrong = _total(parts + 2 * part, count, R, rows, row_mask, BLOCK_R, BLOCK_S)
    if exclude is not None:
        for first in range(0, X, BLOCK_X):
            columns = first + tl.arange(0, BLOCK_X)
            mask = row_mask[:, None] & (columns < X)[None, :]
            ids = tl.load(exclude + rows[:, None] * X + columns[None, :], mask=mask, other=-1)
            tl.device_assert((ids >= -1) & (ids < V), "exclude must be in [0, V), or -1 as padding")
        part = tl.cast(excluded_count, tl.int64) * R
        above -= _total(excluded, excluded_count, R, rows, row_mask, BLOCK_R, BLOCK_S)
        same -= _total(excluded + part, excluded_count, R, rows, row_mask, BLOCK_R, BLOCK_S)
    tl.store(greater + rows, tl.where(wrong > 0, -1, above), mask=row_mask)
    tl.store(equal + rows, tl.where(wrong > 0, -1, same), mask=row_mask)


def counts(
    states: Tensor, offsets: Tensor | None, items: Tensor, targets: Tensor, scale: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items score above the target, and how many the same: int64 [R] each.

    Args:
        states: [R, M, D].
        offsets: o of the mixtures [R, M]; None for dot products (M = 1).
        items: [V, D], not empty.
        targets: int64 [R].
        scale: of the products under a mixture.
        exclude: int64 [R, X], padded with -1, or None.
    """
    rows, streams, dim = states.shape
    vocabulary = items.shape[0]
    greater, equal = (states.new_empty((rows,), dtype=torch.int64) for _ in range(2))
    if rows == 0:
        return greater, equal
    targets = targets.contiguous()
    if exclude is not None and exclude.shape[1] == 0:
        exclude = None
    options = launch.ranks(rows, states.element_size())
    row_blocks = launch.blocks(rows, options["BLOCK_R"])
    item_blocks = launch.blocks(vocabulary, options["BLOCK_V"])
    per_split, splits = launch.split(item_blocks, row_blocks, launch.GRADIENT_PROGRAMS)
    target_scores = states.new_empty((rows,), dtype=torch.float32)
    references = None if offsets is None else torch.empty_like(target_scores)
    parts = states.new_empty((3, splits, rows), dtype=torch.int32)
    excluded, excluded_count, excluded_columns = None, 0, 0
    vectors = (*strided(states), offsets, *strided(items), targets, target_scores, references)
    constants = {"D": dim, "PRECISION": dot_precision()}
    with torch.cuda.device_of(states):
        _counts_kernel[(row_blocks, splits)](
            *vectors, parts, scale, per_split, rows, streams, vocabulary, **constants, **options
        )
        if exclude is not None:
            exclude = exclude.sort(dim=1).values.contiguous()
            excluded_columns = exclude.shape[1]
            excluded_count = launch.blocks(excluded_columns, options["BLOCK_V"])
            excluded = states.new_empty((2, excluded_count, rows), dtype=torch.int32)
            _excluded_kernel[(rows, excluded_count)](
                *vectors, excluded, exclude, scale, rows, streams, vocabulary, excluded_columns, **constants, **options
            )
        options = launch.rank_totals()
        _totals_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            targets,
            exclude,
            parts,
            excluded,
            greater,
            equal,
            splits,
            excluded_count,
            rows,
            vocabulary,
            excluded_columns,
            **options,
        )
    return greater, equal


def forward(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many other items score above the target, and how many the same: int64 [R] each."""
    return counts(states.unsqueeze(1), None, items, targets, 1.0, exclude)
