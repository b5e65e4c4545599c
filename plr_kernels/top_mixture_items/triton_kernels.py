"""The "triton" backend of top_mixture_items: one sweep of the items where a certificate holds, a second for other rows.

The first sweep finds every stream's normaliser Z_m and its K' best items, the last of which has the product t_m. The
union C of a row's lists is scored under the mixture. An item outside of C has products of at most t_m, hence a score of
at most

    U = log2 Σ_m 2^(o_m + scale · (t_m − peak_m))

(../triton_shared/ranking.py has the rest of the notation). Where the k-th best of C is above U, it is above all that is
outside. Other rows are counted and listed on the device, and a second sweep takes those alone: its programs read how
many there are, share the items among themselves and end at once where there is none. The host waits for nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.checks import check_exclude
from plr_kernels.dispatch.precision import upcast
from plr_kernels.dispatch.results import new_lists
from plr_kernels.top_items.triton_kernels import (
    EMPTY_SLOT,
    LARGEST_K,
    LOWEST_RANK,
    empty_lists,
    ids_of,
    keep_best,
    may_be_listed,
    ranks_of,
    results,
    scores_of,
    sorted_keys,
)
from plr_kernels.top_mixture_items import reference
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LN_2, LOWEST, Strided, dot_precision, strided
from plr_kernels.triton_shared.ranking import (
    Exclusion,
    Mixture,
    dot_products,
    excluded_columns,
    exclusion_arguments,
    log2_probabilities,
    log2_sum,
    logit_scale,
    mask_argument,
    mixture_of_parts,
)


@triton.jit(do_not_specialize=["scale", "M", "C"])
def _candidates_kernel(
    states,
    states_strides,
    peaks,
    offsets,
    items,
    items_strides,
    candidates,
    keys,
    scale,
    M,
    C,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The keys [R, C] of some of a row's candidates, once each: an empty slot for one that is there before.

    candidates [R, C], sorted: the complements of their ids, as in keys. Tiles are those of the first sweep, with the
    row's streams as rows, so that products are the same numbers.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    exists = places < C
    complements = tl.load(candidates + row * C + places, mask=exists, other=0)
    previous = tl.load(candidates + row * C + places - 1, mask=exists & (places > 0), other=-1)
    numbers = (0xFFFFFFFF - complements).to(tl.int32)
    exists &= (complements != previous) & (complements > 0)  # 0 is that of an empty slot
    m = tl.full([BLOCK_V], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)
    for first in range(0, M, BLOCK_R):
        streams = first + tl.arange(0, BLOCK_R)
        stream_mask = streams < M
        vectors = row * states.strides[0] + streams.to(tl.int64) * states.strides[1]
        products = dot_products(states, vectors, stream_mask, items, numbers, exists, D, PRECISION, BLOCK_D)
        peak = tl.load(peaks + row * M + streams, mask=stream_mask, other=0.0)
        offset = tl.load(offsets + row * M + streams, mask=stream_mask, other=0.0)
        terms = (products - peak[:, None]) * scale + offset[:, None]
        terms = tl.where(stream_mask[:, None], terms, float("-inf"))
        m_new = tl.maximum(m, tl.max(terms, 0))
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(terms - m_new[None, :]), 0)
        m = m_new
    ranks = ranks_of((m + tl.log2(total)) * LN_2)
    found = (ranks.to(tl.int64) << 32) | complements
    tl.store(keys + row * C + places, tl.where(exists & (ranks > LOWEST_RANK), found, EMPTY_SLOT), mask=places < C)


@triton.jit(do_not_specialize=["lists_stride", "list_length", "scale", "R", "M", "C", "K"])
def _certificate_kernel(
    lists,
    lists_stride,
    list_length,
    peaks,
    offsets,
    keys,
    open_rows,
    open_count,
    scale,
    R,
    M,
    C,
    K,
    BLOCK_R: tl.constexpr,
):
    """Adds the rows whose K-th best candidate is not surely above all that is outside to the list of open rows.

    lists [R · M, ...] and keys [R, C] are sorted, best first. A list that is not full leaves nothing outside.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = rows < R
    limit = tl.full([BLOCK_R], float("-inf"), tl.float32)  # U
    largest_offset = tl.zeros([BLOCK_R], tl.float32)
    for stream in range(M):
        worst = tl.load(lists + (rows * M + stream) * lists_stride + (list_length - 1), mask=row_mask, other=EMPTY_SLOT)
        offset = tl.load(offsets + rows * M + stream, mask=row_mask, other=0.0)
        peak = tl.load(peaks + rows * M + stream, mask=row_mask, other=0.0)
        term = (scores_of(worst) - peak) * scale + offset
        limit = log2_sum(limit, term)
        largest_offset = tl.maximum(largest_offset, tl.where(offset == float("-inf"), 0.0, tl.abs(offset)))
    # A term is rounded in the units of its operands, a sum of M in its own.
    margin = 9.5367431640625e-07 * (largest_offset + tl.abs(limit) + 64 + M)  # 2^-20
    bound = scores_of(tl.load(keys + rows * C + (K - 1), mask=row_mask, other=EMPTY_SLOT))
    proven = (limit == float("-inf")) | (bound > (limit + margin) * LN_2)
    is_open = row_mask & (proven == 0)
    slots = tl.atomic_add(open_count + rows * 0, 1, mask=is_open)  # in no order: a row's results are the same in any
    tl.store(open_rows + slots, rows.to(tl.int32), mask=is_open)


@triton.jit
def _parts_of_items(count, programs, item_blocks, BLOCK_R: tl.constexpr):
    """How many programs share the items for each block of the `count` open rows."""
    return tl.minimum(programs // tl.maximum(tl.cdiv(count, BLOCK_R), 1), item_blocks)


@triton.jit(do_not_specialize=["exclude_row_stride", "scale", "M", "V", "X", "K"])
def _second_sweep_kernel(
    states,
    states_strides,
    peaks,
    offsets,
    items,
    items_strides,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    where,
    open_rows,
    open_count,
    keys,
    scale,
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
    """The keys of the K best of a part of the items for a block of open rows: [open rows, parts, K], in no order."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    count = tl.load(open_count)
    item_blocks = tl.cdiv(V, BLOCK_V)
    parts = _parts_of_items(count, tl.num_programs(0), item_blocks, BLOCK_R)
    part = tl.program_id(0) % parts
    places = (tl.program_id(0) // parts).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = places < count
    rows = tl.load(open_rows + places, mask=row_mask, other=0).to(tl.int64)
    best = empty_lists(K, BLOCK_R, BLOCK_K)
    per_part = tl.cdiv(item_blocks, parts) * BLOCK_V
    first = part * per_part
    last = tl.minimum(first + per_part, V)
    if tl.program_id(0) // parts * BLOCK_R >= count:
        last = first  # nothing to do
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        scores = LN_2 * log2_probabilities(
            states, Mixture(peaks, offsets, M, scale), rows, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D
        )
        if where is not None:
            item_mask = may_be_listed(where, numbers, item_mask)
        ranks = tl.where(row_mask[:, None] & item_mask[None, :], ranks_of(scores), LOWEST_RANK)
        best = keep_best(
            best,
            ranks,
            start,
            Exclusion(exclude, exclude_row_stride, exclude_column_stride, X),
            rows,
            row_mask,
            BLOCK_X,
        )
    slots = tl.arange(0, BLOCK_K)
    place = (places * parts + part)[:, None] * K + slots[None, :]
    tl.store(keys + place, best, mask=row_mask[:, None] & (slots < K)[None, :])


@triton.jit(do_not_specialize=["programs", "V", "K"])
def _merge_kernel(
    keys,
    open_rows,
    open_count,
    scores,
    ids,
    programs,
    V,
    K,
    SWEPT_R: tl.constexpr,
    SWEPT_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Scores and ids [R, K] of an open row, from the keys of all parts of the items."""
    count = tl.load(open_count)
    place = tl.program_id(0)
    kept = tl.where(place < count, K, 0)  # nothing of a row that is not open
    parts = _parts_of_items(count, programs, tl.cdiv(V, SWEPT_V), SWEPT_R)
    entries = parts * kept
    own_keys = keys + place.to(tl.int64) * parts * K
    slots = tl.arange(0, BLOCK_K)
    best = tl.where(slots < K, EMPTY_SLOT, -1 - EMPTY_SLOT)
    for start in range(0, entries, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        found = tl.load(own_keys + numbers, mask=numbers < entries, other=EMPTY_SLOT)
        highest = tl.max(found, 0)
        while highest > tl.min(best, 0):
            best = tl.where(slots == tl.argmin(best, 0), highest, best)
            found = tl.where(found == highest, EMPTY_SLOT, found)
            highest = tl.max(found, 0)
    # Each key's place is the number of those before it; among empty slots those of smaller slots.
    before = best[None, :] > best[:, None]
    before |= (best[None, :] == best[:, None]) & (slots[None, :] < slots[:, None])
    order = tl.sum(before.to(tl.int32), 1) - (BLOCK_K - K)
    row = tl.load(open_rows + place).to(tl.int64)
    mask = slots < kept
    tl.store(scores + row * K + order, scores_of(best), mask=mask)
    tl.store(ids + row * K + order, ids_of(best), mask=mask)


def _scored_candidates(
    states: Tensor, peaks: Tensor, offsets: Tensor, items: Tensor, lists: Tensor, list_length: int, scale: float
) -> Tensor:
    """The keys of all that is in a row's lists [R · M, ...], under the mixture, best first: int64 [R, M · K']."""
    rows, streams, dim = states.shape
    candidates = (lists[:, :list_length] & 0xFFFFFFFF).view(rows, streams * list_length).sort(dim=1).values
    keys = torch.empty_like(candidates)
    options = launch.mixture_candidates(rows * streams, list_length, states.element_size())
    with torch.cuda.device_of(states):
        _candidates_kernel[(rows, launch.blocks(candidates.shape[1], options["BLOCK_V"]))](
            *strided(states),
            peaks,
            offsets,
            *strided(items),
            candidates,
            keys,
            scale,
            streams,
            candidates.shape[1],
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
    return keys.sort(dim=1, descending=True).values


def _sweep_open_rows(
    states: Tensor,
    peaks: Tensor,
    offsets: Tensor,
    items: Tensor,
    exclude: Tensor | None,
    where: Tensor | None,
    scale: float,
    open_rows: Tensor,
    open_count: Tensor,
    scores: Tensor,
    ids: Tensor,
) -> None:
    """Write scores and ids [R, k] of the open rows."""
    rows, streams, dim = states.shape
    vocabulary, k = items.shape[0], scores.shape[1]
    options = launch.top_items(rows, k, states.element_size(), is_mixture=True)
    row_blocks, _, splits = launch.sweep(rows, vocabulary, options)
    programs = row_blocks * splits
    keys = ids.new_empty((programs * options["BLOCK_R"], k))
    with torch.cuda.device_of(states):
        _second_sweep_kernel[(programs,)](
            *strided(states),
            peaks,
            offsets,
            *strided(items),
            *exclusion_arguments(exclude),
            mask_argument(where),
            open_rows,
            open_count,
            keys,
            scale,
            streams,
            vocabulary,
            excluded_columns(exclude),
            k,
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
        _merge_kernel[(rows,)](
            keys,
            open_rows,
            open_count,
            scores,
            ids,
            programs,
            vocabulary,
            k,
            SWEPT_R=options["BLOCK_R"],
            SWEPT_V=options["BLOCK_V"],
            **launch.merged_lists(k),
        )


def forward_counted(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    temperature: float,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `forward` for 1 <= k <= LARGEST_K and at least a row; and how many rows took a second sweep, int32 [1]."""
    rows, streams, _ = states.shape
    scale = logit_scale(temperature)
    list_length = launch.mixture_list(k)
    lists, parts = sorted_keys(states, items, list_length, exclude, where, scale)
    assert parts is not None
    peaks, offsets = mixture_of_parts(parts, log_weights, scale)
    keys = _scored_candidates(states, peaks, offsets, items, lists, list_length, scale)
    scores, ids = results(keys, k, items.shape[0], exclude)
    open_rows, open_count = ids.new_empty((rows,), dtype=torch.int32), ids.new_zeros((1,), dtype=torch.int32)
    options = launch.certificates()
    with torch.cuda.device_of(states):
        _certificate_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            lists,
            lists.stride(0),
            list_length,
            peaks,
            offsets,
            keys,
            open_rows,
            open_count,
            scale,
            rows,
            streams,
            keys.shape[1],
            k,
            **options,
        )
    _sweep_open_rows(states, peaks, offsets, items, exclude, where, scale, open_rows, open_count, scores, ids)
    return scores, ids, open_count


def forward(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    temperature: float,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most probable items of each row under the mixture, best first, ties to the smaller id."""
    if states.shape[0] == 0:
        return new_lists(states, k)
    if k > LARGEST_K:
        check_exclude(exclude, items.shape[0])
        states, log_weights, items = upcast(states), upcast(log_weights), upcast(items)
        return reference.top_mixture_items(states, log_weights, items, k, temperature, exclude, where)
    scores, ids, _ = forward_counted(states, log_weights, items, k, temperature, exclude, where)
    return scores, ids
