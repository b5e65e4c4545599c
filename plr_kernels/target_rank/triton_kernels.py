"""The "triton" backend of target_rank: tiles of scores, compared with the targets' own.

A program takes a block of rows and a part of the items. It first scores its rows' targets in a tile of the same shape,
whose diagonal is what the scores of all other tiles are held against. Excluded items are scored again, row by row, and
taken out of the counts; a row's ids are sorted before, so that one that is there twice is taken out once.

Mixtures are ranked by the same kernels: by how much more probable than the target items are, from the distances of
their products to anchors (../target_mixture_rank/triton_kernels.py).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.results import new_counts
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import Strided, dot_precision, part_of_items, strided
from plr_kernels.triton_shared.ranking import Exclusion, check_excluded, dot_products, is_not_finite, vector_offsets


class Anchors(NamedTuple):
    """What mixtures' terms are computed from: `at`, `weight` and `taken` [R, M, 3], M, and the products' scale."""

    data: Any
    streams: Any
    scale: Any


@triton.jit
def _exp2_less(x, taken):
    """2^x − taken, for x from −126 to 126; where taken is 1 without cancellation: for a small x it is x ln 2."""
    exponent = tl.floor(x + 0.5)
    f = x - exponent
    # (2^f − 1) / f for f in [−1/2, 1/2], with a relative error of 2e-9.
    slope = 1.5353362e-4 * f + 1.3398874e-3
    slope = slope * f + 9.6184369e-3
    slope = slope * f + 5.5503324e-2
    slope = slope * f + 2.4022648e-1
    slope = slope * f + 6.9314718e-1
    power = tl.exp2(exponent)
    return power * (slope * f) + (power - taken)


@triton.jit
def _excess(
    states,
    anchors,
    rows,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Σ_m weight · (2^(scale · (d_m − at)) − taken) of a tile [rows, items].

    And 1 where a product is NaN or +∞, or all are −∞, else 0.
    """
    result = tl.zeros([rows.shape[0], numbers.shape[0]], tl.float32)
    farthest = tl.full([rows.shape[0], numbers.shape[0]], float("-inf"), tl.float32)
    for m in range(anchors.streams):
        vectors = vector_offsets(states, rows, m)
        products = dot_products(states, vectors, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        anchor = anchors.data + (rows * anchors.streams + m) * 3
        distance = products - tl.load(anchor, mask=row_mask, other=0.0)[:, None]
        weight = tl.load(anchor + 1, mask=row_mask, other=0.0)
        taken = tl.load(anchor + 2, mask=row_mask, other=0.0)
        farthest = tl.maximum(farthest, distance)
        exponent = distance * anchors.scale
        exponent = tl.where(exponent < -126.0, -126.0, tl.where(exponent > 100.0, 100.0, exponent))  # NaN stays
        result += weight[:, None] * _exp2_less(exponent, taken[:, None])
    return result, tl.maximum(is_not_finite(farthest), (result != result).to(tl.int32))


@triton.jit
def _tile(
    states,
    anchors,
    rows,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What is compared of a tile [rows, items], products or excesses of probability, and 1 where that is not finite."""
    if anchors.data is None:
        vectors = vector_offsets(states, rows, 0)
        scores = dot_products(states, vectors, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        not_finite = is_not_finite(scores)
    else:
        scores, not_finite = _excess(states, anchors, rows, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
    return scores, not_finite


@triton.jit
def _targets_of_block(targets, first_row, R, V, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr):
    """The targets of a block of rows, as the items of a tile: a row's own is on the diagonal. BLOCK_R <= BLOCK_V."""
    places = tl.arange(0, BLOCK_V)
    exists = (places < BLOCK_R) & (first_row + places < R)
    numbers = tl.load(targets + first_row + places, mask=exists, other=-1)
    return numbers, exists & (numbers >= 0) & (numbers < V)


@triton.jit
def _diagonal(tile):
    """Of each row the number in the column of the same number."""
    is_own = tl.arange(0, tile.shape[0])[:, None] == tl.arange(0, tile.shape[1])[None, :]
    return tl.sum(tl.where(is_own, tile, 0.0), 1)


@triton.jit(do_not_specialize=["R", "M", "V"])
def _target_products_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    products,
    R,
    M,
    V,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The products [R, M] of every stream and its row's target, in tiles as those of the counts."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_R
    rows = first_row + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    numbers, exists = _targets_of_block(targets, first_row, R, V, BLOCK_R, BLOCK_V)
    vectors = vector_offsets(states, rows, tl.program_id(1))
    tile = dot_products(states, vectors, row_mask, items, numbers, exists, D, PRECISION, BLOCK_D)
    tl.store(products + rows * M + tl.program_id(1), _diagonal(tile), mask=row_mask)


@triton.jit(do_not_specialize=["scale", "per_split", "R", "M", "V"])
def _counts_kernel(
    states,
    states_strides,
    anchors,
    items,
    items_strides,
    targets,
    target_scores,
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
    target_scores [R]: what `_tile` finds for the targets.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_R
    rows = first_row + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    wanted, exists = _targets_of_block(targets, first_row, R, V, BLOCK_R, BLOCK_V)
    scores, _ = _tile(states, Anchors(anchors, M, scale), rows, row_mask, items, wanted, exists, D, PRECISION, BLOCK_D)
    own = _diagonal(scores)
    tl.store(target_scores + rows, own, mask=row_mask)  # the same number in every part

    target = tl.load(targets + rows, mask=row_mask, other=-1).to(tl.int32)
    greater = tl.zeros([BLOCK_R], tl.int32)
    equal = tl.zeros([BLOCK_R], tl.int32)
    wrong = is_not_finite(own)
    first, last = part_of_items(per_split, V, BLOCK_V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores, not_finite = _tile(
            states,
            Anchors(anchors, M, scale),
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
    anchors,
    items,
    items_strides,
    targets,
    target_scores,
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
    scores, _ = _tile(states, Anchors(anchors, M, scale), rows, row_mask, items, numbers, exists, D, PRECISION, BLOCK_D)
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
        check_excluded(Exclusion(exclude, X, 1, X), rows, row_mask, V, BLOCK_X)
        part = tl.cast(excluded_count, tl.int64) * R
        above -= _total(excluded, excluded_count, R, rows, row_mask, BLOCK_R, BLOCK_S)
        same -= _total(excluded + part, excluded_count, R, rows, row_mask, BLOCK_R, BLOCK_S)
    tl.store(greater + rows, tl.where(wrong > 0, -1, above), mask=row_mask)
    tl.store(equal + rows, tl.where(wrong > 0, -1, same), mask=row_mask)


def target_products(states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """The products float32 [R, M] of states [R, M, D] and their rows' targets, as `counts` finds them."""
    rows, streams, dim = states.shape
    products = states.new_empty((rows, streams), dtype=torch.float32)
    options = launch.ranks(rows, states.element_size())
    with torch.cuda.device_of(states):
        _target_products_kernel[(launch.blocks(rows, options["BLOCK_R"]), streams)](
            *strided(states),
            *strided(items),
            targets,
            products,
            rows,
            streams,
            items.shape[0],
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
    return products


def counts(
    states: Tensor, anchors: Tensor | None, items: Tensor, targets: Tensor, scale: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items score above the target, and how many the same: int64 [R] each.

    Args:
        states: [R, M, D].
        anchors: of mixtures [R, M, 3]; None for dot products (M = 1).
        items: [V, D], not empty.
        targets: contiguous int64 [R].
        scale: of the products under a mixture.
        exclude: int64 [R, X], padded with -1, or None.
    """
    rows, streams, dim = states.shape
    vocabulary = items.shape[0]
    greater, equal = new_counts(states)
    if rows == 0:
        return greater, equal
    if exclude is not None and exclude.shape[1] == 0:
        exclude = None
    options = launch.ranks(rows, states.element_size())
    row_blocks, per_split, splits = launch.sweep(rows, vocabulary, options)
    target_scores = states.new_empty((rows,), dtype=torch.float32)
    parts = states.new_empty((3, splits, rows), dtype=torch.int32)
    excluded, excluded_count, excluded_columns = None, 0, 0
    vectors = (*strided(states), anchors, *strided(items), targets, target_scores)
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
    return counts(states.unsqueeze(1), None, items, targets.contiguous(), 1.0, exclude)
