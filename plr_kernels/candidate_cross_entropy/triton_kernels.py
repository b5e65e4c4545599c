"""The "triton" backend of candidate_cross_entropy.

The forward pass keeps the scores of all rows with their candidates, [R, K], and a few numbers of each row; the loss'
derivatives w.r.t. the scores follow from these where they are needed. Where all rows have the same candidates, scores
and both gradients are products of matrices; where each has its own, sums over the one row.

An item may be named by several entries of the lists, and by targets. So that results are the same in every run, the
entries are sorted by their items, and one program adds up all of an item's, in their order.

Scores of a softmax are held in units of log2, since the hardware's exponential is 2^x, those of sigmoids as they are.
Entries that do not count, which are padding, the row's own target, and all of an ignored row, have −inf.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LN_2, LOG2_E, LOWEST, Strided, dot_precision, load_tile, strided

_ROW_STATISTICS = tl.constexpr(3)


class _Columns(NamedTuple):
    """What is kept of a row: numbers of the columns. Not constants, for the reason given in triton_shared/scores.py."""

    maximum: Any  # m, the largest score; of sigmoids 0
    factor: Any  # 1 / Σ 2^(s − m); of sigmoids 1 / (K + 1), of an ignored row 0
    target_weight: Any  # the loss' derivative w.r.t. the target's score


@triton.jit
def _columns():
    return _Columns(0, 1, 2)


@triton.jit
def _log1p(u):
    """log(1 + u) of u in [0, 1], right to some units of rounding for small u too (Kahan)."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def _softplus(x):
    """log(1 + e^x)."""
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    """1 / (1 + e^−x), without an infinite exponential."""
    u = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, u) / (1.0 + u)


@triton.jit
def _weights(scores, maximum, factor, SOFTMAX: tl.constexpr):
    """The loss' derivatives w.r.t. the scores."""
    if SOFTMAX:
        weights = tl.exp2(scores - maximum) * factor
    else:
        weights = _sigmoid(scores) * factor
    return weights


@triton.jit(do_not_specialize=["ignore_index", "R", "K", "V"])
def _shared_scores_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    candidates,
    log_q,
    scores,
    scale,
    correction,
    R,
    K,
    V,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of the scores [R, K] with the candidates of all rows."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    numbers = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    target = tl.load(targets + rows, mask=rows < R, other=ignore_index)
    counted = target != ignore_index
    candidate = tl.load(candidates + numbers, mask=numbers < K, other=-1)
    tl.device_assert((candidate >= -1) & (candidate < V), "candidates must be in [0, V), or -1 as padding")
    named = candidate >= 0
    products = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = (columns < D)[None, :]
        h = load_tile(states.data, rows, states.strides[0], columns, states.strides[1], counted[:, None] & inside)
        e = load_tile(items.data, candidate, items.strides[0], columns, items.strides[1], named[:, None] & inside)
        products = tl.dot(h, tl.trans(e), acc=products, input_precision=PRECISION)
    z = products * scale
    if log_q is not None:
        z -= (tl.load(log_q + numbers, mask=named, other=0.0) * correction)[None, :]
    in_list = counted[:, None] & named[None, :] & (candidate[None, :] != target[:, None])
    exists = (rows < R)[:, None] & (numbers < K)[None, :]
    tl.store(scores + rows[:, None] * K + numbers[None, :], tl.where(in_list, z, float("-inf")), mask=exists)


@triton.jit(do_not_specialize=["ignore_index", "K", "V"])
def _own_scores_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    candidates,
    log_q,
    scores,
    scale,
    correction,
    K,
    V,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some of a row's scores with its own candidates."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    row = tl.program_id(0).to(tl.int64)
    numbers = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    target = tl.load(targets + row)
    entries = row * K + numbers
    candidate = tl.load(candidates + entries, mask=numbers < K, other=-1)
    tl.device_assert((candidate >= -1) & (candidate < V), "candidates must be in [0, V), or -1 as padding")
    candidate = tl.where(target == ignore_index, -1, candidate)
    in_list = (candidate >= 0) & (candidate != target)
    products = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = columns < D
        h = tl.load(states.data + row * states.strides[0] + columns.to(tl.int64) * states.strides[1], mask=inside)
        mask = in_list[:, None] & inside[None, :]
        e = load_tile(items.data, candidate, items.strides[0], columns, items.strides[1], mask)
        products += tl.sum(tl.where(mask, e.to(tl.float32) * h.to(tl.float32)[None, :], 0.0), 1)
    z = products * scale
    if log_q is not None:
        z -= tl.load(log_q + entries, mask=in_list, other=0.0) * correction
    tl.store(scores + entries, tl.where(in_list, z, float("-inf")), mask=numbers < K)


@triton.jit(do_not_specialize=["ignore_index", "R", "K", "V"])
def _loss_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    scores,
    statistics,
    losses,
    scale,
    positive_power,
    R,
    K,
    V,
    SOFTMAX: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The loss of each row, and its statistics, from its scores.

    The target's score is D products, computed in float32 whatever the precision.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = rows < R
    target = tl.load(targets + rows, mask=exists, other=ignore_index)
    counted = target != ignore_index
    tl.device_assert((counted == 0) | ((target >= 0) & (target < V)), "targets must be in [0, V) or ignore_index")
    score = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = counted[:, None] & (columns < D)[None, :]
        h = load_tile(states.data, rows, states.strides[0], columns, states.strides[1], inside)
        e = load_tile(items.data, target, items.strides[0], columns, items.strides[1], inside)
        score += tl.sum(h.to(tl.float32) * e.to(tl.float32), 1)
    score *= scale
    m = tl.full([BLOCK_R], LOWEST, tl.float32)  # LOWEST, not −inf: no candidate may count
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, K, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        inside = exists[:, None] & (numbers < K)[None, :]
        z = tl.load(scores + rows[:, None] * K + numbers[None, :], mask=inside, other=float("-inf"))
        if SOFTMAX:
            m_new = tl.maximum(m, tl.max(z, 1))
            total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(z - m_new[:, None]), 1)
            m = m_new
        else:
            total += tl.sum(_softplus(z), 1)
    if SOFTMAX:
        largest = tl.maximum(m, score)
        rest = total * tl.exp2(m - largest)
        total = rest + tl.exp2(score - largest)
        loss = ((largest - score) + tl.log2(total)) * LN_2
        maximum, factor, target_weight = largest, 1.0 / total, -rest / total
    else:
        share = 1.0 / (K + 1)
        loss = (total + positive_power * _softplus(-score)) * share
        maximum, factor = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R], tl.float32) + share
        target_weight = -positive_power * _sigmoid(-score) * share
    tl.store(losses + rows, tl.where(counted, loss, 0.0), mask=exists)
    row_stats, column = statistics + rows * _ROW_STATISTICS, _columns()
    tl.store(row_stats + column.maximum, tl.where(counted, maximum, 0.0), mask=exists)
    tl.store(row_stats + column.factor, tl.where(counted, factor, 0.0), mask=exists)
    tl.store(row_stats + column.target_weight, tl.where(counted, target_weight, 0.0), mask=exists)


@triton.jit(do_not_specialize=["ignore_index", "weights_stride", "R", "K"])
def _shared_states_gradient_kernel(
    items,
    items_strides,
    targets,
    ignore_index,
    candidates,
    scores,
    statistics,
    weights,
    weights_stride,
    gradient,
    factor,
    R,
    K,
    SOFTMAX: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """dL/dh = Σ_k dL/ds_k · e_k + dL/ds_y · e_y of a block of rows with the same candidates."""
    items = Strided(items, items_strides)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = rows < R
    target = tl.load(targets + rows, mask=exists, other=ignore_index)
    counted = target != ignore_index
    row_stats, column = statistics + rows * _ROW_STATISTICS, _columns()
    maximum = tl.load(row_stats + column.maximum, mask=exists, other=0.0)
    share = tl.load(row_stats + column.factor, mask=exists, other=0.0)
    columns = tl.program_id(1) * HELD_D + tl.arange(0, HELD_D)
    total = tl.zeros([BLOCK_R, HELD_D], tl.float32)
    for start in range(0, K, BLOCK_K):
        numbers = start + tl.arange(0, BLOCK_K)
        candidate = tl.load(candidates + numbers, mask=numbers < K, other=-1)
        mask = (candidate >= 0)[:, None] & (columns < D)[None, :]
        e = load_tile(items.data, candidate, items.strides[0], columns, items.strides[1], mask)  # [K, HELD_D]
        inside = exists[:, None] & (numbers < K)[None, :]
        z = tl.load(scores + rows[:, None] * K + numbers[None, :], mask=inside, other=float("-inf"))
        # The row's factor comes behind the sum: float16 would round it, 1/K or so, off.
        ds = _weights(z, maximum[:, None], 1.0, SOFTMAX)
        total = tl.dot(ds.to(e.dtype), e, acc=total, input_precision=PRECISION)
    total *= share[:, None]
    mask = counted[:, None] & (columns < D)[None, :]
    own = load_tile(items.data, target, items.strides[0], columns, items.strides[1], mask).to(tl.float32)
    total += tl.load(row_stats + column.target_weight, mask=exists, other=0.0)[:, None] * own
    total *= (tl.load(weights + rows * weights_stride, mask=exists, other=0.0) * factor)[:, None]
    total = tl.where(counted[:, None], total, 0.0)  # of a row that does not count 0 · NaN is none
    offsets = rows[:, None] * D + columns[None, :]
    mask = exists[:, None] & (columns < D)[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["ignore_index", "weights_stride", "K"])
def _own_states_gradient_kernel(
    items,
    items_strides,
    targets,
    ignore_index,
    candidates,
    scores,
    statistics,
    weights,
    weights_stride,
    gradient,
    factor,
    K,
    SOFTMAX: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The same of one row with candidates of its own."""
    items = Strided(items, items_strides)
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    counted = target != ignore_index
    row_stats, column = statistics + row * _ROW_STATISTICS, _columns()
    maximum, share = tl.load(row_stats + column.maximum), tl.load(row_stats + column.factor)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, K, BLOCK_K):
        numbers = start + tl.arange(0, BLOCK_K)
        z = tl.load(scores + row * K + numbers, mask=numbers < K, other=float("-inf"))
        candidate = tl.load(candidates + row * K + numbers, mask=numbers < K, other=-1)
        mask = (tl.where(counted, candidate, -1) >= 0)[:, None] & (columns < D)[None, :]
        e = load_tile(items.data, candidate, items.strides[0], columns, items.strides[1], mask).to(tl.float32)
        total += tl.sum(_weights(z, maximum, share, SOFTMAX)[:, None] * e, 0)
    offsets = tl.where(counted, target, 0) * items.strides[0] + columns.to(tl.int64) * items.strides[1]
    own = tl.load(items.data + offsets, mask=columns < tl.where(counted, D, 0), other=0.0).to(tl.float32)
    total += tl.load(row_stats + column.target_weight) * own
    total *= tl.where(counted, tl.load(weights + row * weights_stride) * factor, 0.0)
    tl.store(gradient + row * D + columns, total.to(gradient.dtype.element_ty), mask=columns < D)


@triton.jit(do_not_specialize=["ignore_index", "weights_stride", "per_split", "R", "K"])
def _candidates_gradient_kernel(
    states,
    states_strides,
    targets,
    ignore_index,
    scores,
    statistics,
    weights,
    weights_stride,
    largest,
    gradient,
    per_split,
    R,
    K,
    SOFTMAX: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """Σ_rows w · dL/ds · h over a part of the rows (`per_split` blocks), for a block of the candidates of all rows."""
    states = Strided(states, states_strides)
    numbers = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.program_id(2) * HELD_D + tl.arange(0, HELD_D)
    first = tl.program_id(1).to(tl.int64) * per_split * BLOCK_R
    last = tl.minimum(first + per_split * BLOCK_R, R)
    # Weights of a mean over many rows, and sigmoids' shares, are too small for float16: the largest becomes 1, and
    # multiplies the sums.
    unit = 1.0
    if largest is not None:
        unit = tl.load(largest)
    total = tl.zeros([BLOCK_K, HELD_D], tl.float32)
    for start in range(first, last, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        exists = rows < last
        counted = tl.load(targets + rows, mask=exists, other=ignore_index) != ignore_index
        mask = counted[:, None] & (columns < D)[None, :]
        h = load_tile(states.data, rows, states.strides[0], columns, states.strides[1], mask)  # [R, HELD_D]
        row_stats, column = statistics + rows * _ROW_STATISTICS, _columns()
        maximum = tl.load(row_stats + column.maximum, mask=counted, other=0.0)
        share = tl.load(row_stats + column.factor, mask=counted, other=0.0)
        inside = (numbers < K)[:, None] & counted[None, :]
        z = tl.load(scores + rows[None, :] * K + numbers[:, None], mask=inside, other=float("-inf"))  # [K, R]
        weight = tl.load(weights + rows * weights_stride, mask=counted, other=0.0) / unit
        ds = _weights(z, maximum[None, :], share[None, :], SOFTMAX) * weight[None, :]
        total = tl.dot(ds.to(h.dtype), h, acc=total, input_precision=PRECISION)
    total *= unit
    offsets = (tl.program_id(1) * tl.cast(K, tl.int64) + numbers)[:, None] * D + columns[None, :]
    tl.store(gradient + offsets, total, mask=(numbers < K)[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["weights_stride", "entries", "R", "K"])
def _named_items_kernel(
    states,
    states_strides,
    scores,
    statistics,
    weights,
    weights_stride,
    of_candidates,
    ids,
    order,
    gradient,
    factor,
    entries,
    R,
    K,
    SOFTMAX: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one item: the sum over the entries that name it, which are neighbours in the sorted ids.

    Entries 0..R−1 are the rows' targets. The others are the candidates: of all rows, with gradients [K, D], or those
    of the rows one after the other. The program of an item's first entry has all of them; −1 is no item.
    """
    states = Strided(states, states_strides)
    place = tl.program_id(0).to(tl.int64)
    item = tl.load(ids + place)
    before = tl.load(ids + place - 1, mask=place > 0, other=-1)
    if (item >= 0) & (item != before):
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = columns < D
        column = _columns()
        total = tl.zeros([BLOCK_D], tl.float32)
        current = item
        while current == item:
            entry = tl.load(order + place)
            listed = entry - R
            is_target = listed < 0
            if of_candidates is None:
                row = tl.where(is_target, entry, listed // K)
                z = tl.load(scores + tl.maximum(listed, 0))
                row_stats = statistics + row * _ROW_STATISTICS
                ds = _weights(z, tl.load(row_stats + column.maximum), tl.load(row_stats + column.factor), SOFTMAX)
                ds = tl.where(is_target, tl.load(row_stats + column.target_weight), ds)
                of_row = D
            else:
                row = tl.where(is_target, entry, 0)
                ds = tl.load(statistics + row * _ROW_STATISTICS + column.target_weight)
                of_row = tl.where(is_target, D, 0)  # how many columns the row's state adds
                rest = columns < D - of_row
                total += tl.load(of_candidates + listed * D + columns, mask=rest, other=0.0)
            offsets = row * states.strides[0] + columns.to(tl.int64) * states.strides[1]
            h = tl.load(states.data + offsets, mask=columns < of_row, other=0.0).to(tl.float32)
            total += tl.load(weights + row * weights_stride) * ds * h
            place += 1
            current = tl.load(ids + place, mask=place < entries, other=-1)
        offsets = item * D + columns
        tl.store(gradient + offsets, (total * factor).to(gradient.dtype.element_ty), mask=inside)


def _check_entries(entries: int, dim: int) -> None:
    """Raise where the programs that sum the items' gradients were more than Triton launches.

    It multiplies a grid's sizes in 32 bits, and launches nothing, in silence, where that overflows.
    """
    most = (2**31 - 1) // launch.blocks(dim, launch.candidate_items(dim)["BLOCK_D"])
    if entries > most:
        raise ValueError(
            f"targets and candidates must have at most {most} entries together on the backend 'triton' with D={dim}, "
            f"found {entries}"
        )


def _check_count(count: int, block_k: int) -> None:
    """Raise where the blocks of candidates were more than a grid has along its second dimension."""
    most = 65535 * block_k
    if count > most:
        raise ValueError(f"candidates must have at most K={most} on the backend 'triton', found K={count}")


def new_statistics(states: Tensor, items: Tensor, targets: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for what is kept for the backward pass: the scores [R, K], and numbers of each row [R, 3], in float32."""
    rows = states.shape[0]
    scores = states.new_empty((rows, candidates.shape[-1]), dtype=torch.float32)
    return scores, states.new_empty((rows, _ROW_STATISTICS.value), dtype=torch.float32)


def forward(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    kind: str,
    positive_power: float,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses [R] and, for the backward pass, the scores and the rows' statistics."""
    rows, dim = states.shape
    losses = states.new_empty((rows,), dtype=torch.float32)
    scores, statistics = new_statistics(states, items, targets, candidates)
    if rows == 0:
        return losses, scores, statistics
    count, vocabulary, softmax = candidates.shape[-1], items.shape[0], kind == "softmax"
    _check_entries(rows + candidates.numel(), dim)
    targets, candidates = targets.contiguous(), candidates.contiguous()
    log_q = None if log_q is None else log_q.to(torch.float32).contiguous()
    correction = LOG2_E if softmax else 1.0
    scale = correction / temperature
    inputs = (*strided(states), *strided(items), targets, ignore_index)
    listed = (candidates, log_q, scores, scale, correction)
    with torch.cuda.device_of(states):
        if candidates.ndim == 1:
            options = launch.candidate_scores(states.element_size())
            _check_count(count, options["BLOCK_K"])
            grid = launch.blocks(rows, options["BLOCK_R"]), launch.blocks(count, options["BLOCK_K"])
            precision = dot_precision()
            _shared_scores_kernel[grid](
                *inputs, *listed, rows, count, vocabulary, D=dim, PRECISION=precision, **options
            )
        else:
            options = launch.own_candidates(dim, asserting=True)
            _check_count(count, options["BLOCK_K"])
            grid = rows, launch.blocks(count, options["BLOCK_K"])
            _own_scores_kernel[grid](*inputs, *listed, count, vocabulary, D=dim, **options)
        options = launch.row_losses(dim)
        _loss_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            *inputs,
            scores,
            statistics,
            losses,
            scale,
            positive_power,
            rows,
            count,
            vocabulary,
            SOFTMAX=softmax,
            D=dim,
            **options,
        )
    return losses, scores, statistics


def backward(
    losses_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    scores: Tensor,
    statistics: Tensor,
    kind: str,
    positive_power: float,
    temperature: float,
    ignore_index: int,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    states_gradient, items_gradient = new_gradients((states, items), (needs_states, needs_items))
    if states.shape[0] == 0:
        return states_gradient.zero_(), items_gradient.zero_()
    targets, candidates = targets.contiguous(), candidates.contiguous()
    kept = (scores.contiguous(), statistics.contiguous(), losses_gradient, losses_gradient.stride(0))
    softmax, factor = kind == "softmax", 1 / temperature
    with torch.cuda.device_of(states):
        if needs_states:
            _states_gradient(states_gradient, items, targets, candidates, kept, softmax, factor, ignore_index)
        if needs_items:
            _items_gradient(items_gradient, states, targets, candidates, kept, softmax, factor, ignore_index)
    return states_gradient, items_gradient


_Kept = tuple[Tensor, Tensor, Tensor, int]
"""Scores, statistics, and the rows' weights with their stride."""


def _states_gradient(
    gradient: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    kept: _Kept,
    softmax: bool,
    factor: float,
    ignore_index: int,
) -> None:
    rows, dim = gradient.shape
    count = candidates.shape[-1]
    arguments = (*strided(items), targets, ignore_index, candidates, *kept, gradient, factor)
    if candidates.ndim == 1:
        options = launch.candidate_gradient(dim, items.element_size(), items.device)
        grid = launch.blocks(rows, options["BLOCK_R"]), launch.blocks(dim, options["HELD_D"])
        precision = dot_precision()
        _shared_states_gradient_kernel[grid](
            *arguments, rows, count, SOFTMAX=softmax, D=dim, PRECISION=precision, **options
        )
    else:
        options = launch.own_candidates(dim)
        grid = rows, launch.blocks(dim, options["BLOCK_D"])
        _own_states_gradient_kernel[grid](*arguments, count, SOFTMAX=softmax, D=dim, **options)


def _items_gradient(
    gradient: Tensor,
    states: Tensor,
    targets: Tensor,
    candidates: Tensor,
    kept: _Kept,
    softmax: bool,
    factor: float,
    ignore_index: int,
) -> None:
    rows, dim = states.shape
    shared = candidates.ndim == 1
    counted = targets != ignore_index
    listed = candidates if shared else torch.where(counted[:, None], candidates, -1).flatten()
    ids, order = torch.cat([torch.where(counted, targets, -1), listed]).sort(stable=True)
    of_candidates = None
    if shared:
        of_candidates = _candidates_gradient(states, targets, candidates, kept, softmax, ignore_index)
    gradient.zero_()
    options = launch.candidate_items(dim)
    _named_items_kernel[(len(ids), launch.blocks(dim, options["BLOCK_D"]))](
        *strided(states),
        *kept,
        of_candidates,
        ids,
        order,
        gradient,
        factor,
        len(ids),
        rows,
        candidates.shape[-1],
        SOFTMAX=softmax,
        D=dim,
        **options,
    )


def _candidates_gradient(
    states: Tensor, targets: Tensor, candidates: Tensor, kept: _Kept, softmax: bool, ignore_index: int
) -> Tensor:
    """What the candidates of all rows get as such, but for the temperature: float32 [K, D]."""
    rows, dim = states.shape
    count, weights = len(candidates), kept[2]
    largest = None
    if states.dtype == torch.float16:
        largest = torch.where(targets == ignore_index, 0.0, weights).abs().amax()
        largest = (largest if softmax else largest / (count + 1)).clamp(min=torch.finfo(torch.float32).tiny)
    options = launch.candidate_gradient(dim, states.element_size(), states.device)
    blocks = launch.blocks(count, options["BLOCK_K"]), launch.blocks(dim, options["HELD_D"])
    wanted = launch.GRADIENT_PROGRAMS
    per_split, splits = launch.split(launch.blocks(rows, options["BLOCK_R"]), blocks[0] * blocks[1], wanted)
    parts = states.new_empty((splits, count, dim), dtype=torch.float32)
    precision = dot_precision()
    _candidates_gradient_kernel[(blocks[0], splits, blocks[1])](
        *strided(states),
        targets,
        ignore_index,
        *kept,
        largest,
        parts,
        per_split,
        rows,
        count,
        SOFTMAX=softmax,
        D=dim,
        PRECISION=precision,
        **options,
    )
    return parts.sum(dim=0)
