"""The "triton" backend of stream_attention.

The M streams of a (user, head) are the rows of one tile: the shared prefix is read once for all of them. With a length
per query they are the streams of neighbouring positions, and what a tile reads ends at the longest of its lengths. A
stream's own entries, its suffix, belong to one row each, so no matrix product applies: they are visited one after the
other, a row per stream.

Scores are held in units of log2, since the hardware's exponential is 2^x.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients, only_wanted
from plr_kernels.stream_attention.keep_mask import dropout_threshold
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LOG2_E, Strided, dot_precision, load_tile, strided

# The tile of queries and an accumulator of its width stay in registers.
LARGEST_DIM = 512

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # query, prefix_key, prefix_value, stream_key, stream_value


class _Lengths(NamedTuple):
    """Lengths [B], or [B, M] where query_stride is not None; no data: all are P."""

    data: Any
    batch_stride: Any
    query_stride: Any


class _Dropout(NamedTuple):
    """Where the seed lies (None: nothing is dropped), the word from which on an entry is kept, and 1/(1 − p)."""

    seed: Any
    threshold: Any
    inverse_keep: Any


class _Matrix(NamedTuple):
    """A matrix of any layout: its address, and the distance of neighbouring rows and columns."""

    data: Any
    row_stride: Any
    column_stride: Any


class _Streams(NamedTuple):
    """Of a block of streams: queries and the output's gradient, [BLOCK_M, HELD_D], and log2 Σ 2^s, [BLOCK_M]."""

    q: Any
    do: Any
    lse: Any


class _Weights(NamedTuple):
    """Of scores s: probabilities p, what values are multiplied by (p after dropout), and the gradient dp w.r.t. p."""

    p: Any
    kept: Any
    dp: Any


@triton.jit
def _load(matrix, rows, columns, mask):
    """A tile [rows, columns] of a matrix, zero where masked."""
    return load_tile(matrix.data, rows, matrix.row_stride, columns, matrix.column_stride, mask)


@triton.jit
def _query_lengths(lengths, batch, streams, M):
    """The lengths of a block of streams, 0 beyond M: [BLOCK_M]."""
    addresses = lengths.data + batch * lengths.batch_stride + streams.to(tl.int64) * lengths.query_stride
    return tl.load(addresses, mask=streams < M, other=0)


@triton.jit
def _seen(entries, length, query_lengths, lengths):
    """Which prefix entries each query of a block sees: [1 or BLOCK_M, BLOCK_P]."""
    if lengths.query_stride is not None:
        seen = entries[None, :] < query_lengths[:, None]
    else:
        seen = (entries < length)[None, :]
    return seen


@triton.jit
def _keep_scale(words, dropout):
    """What a probability is multiplied by: 0 where it is dropped. The threshold may be 2^32, so compare in int64."""
    return tl.where(words.to(tl.int64) >= dropout.threshold, dropout.inverse_keep, 0.0)


@triton.jit
def _row_words(rows):
    return (rows & 0xFFFFFFFF).to(tl.uint32), (rows >> 32).to(tl.uint32)


@triton.jit
def _prefix_keep(dropout, rows, start, BLOCK_P: tl.constexpr):
    """The multipliers [BLOCK_M, BLOCK_P] of prefix entries from `start`, a multiple of 4: one draw serves four."""
    low, high = _row_words(rows)
    quads = (start // 4 + tl.arange(0, BLOCK_P // 4)).to(tl.uint32)
    zeros = tl.zeros([rows.shape[0], BLOCK_P // 4], tl.uint32)
    word0, word1, word2, word3 = tl.philox(
        tl.load(dropout.seed), zeros + quads[None, :], zeros + low[:, None], zeros + high[:, None], zeros
    )
    # [0, 2, 0, 2, ...] with [1, 3, 1, 3, ...] gives [0, 1, 2, 3, ...].
    words = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
    return _keep_scale(words, dropout)


@triton.jit
def _suffix_keep(dropout, rows, entry):
    """The multipliers [BLOCK_M] of entry number `entry` of every stream's suffix."""
    low, high = _row_words(rows)
    zeros = tl.zeros([rows.shape[0]], tl.uint32)
    counter = zeros + tl.cast(entry // 4, tl.uint32)
    word0, word1, word2, word3 = tl.philox(tl.load(dropout.seed), counter, low, high, zeros + 1)
    lane = entry % 4
    words = tl.where(lane == 0, word0, tl.where(lane == 1, word1, tl.where(lane == 2, word2, word3)))
    return _keep_scale(words, dropout)


@triton.jit
def _load_suffix(tensor, batch, head, entry, streams, columns, mask):
    """Entry number `entry` of each stream's suffix of keys or values, in float32: [BLOCK_M, HELD_D]."""
    strides = tensor.strides
    base = tensor.data + (batch * strides[0] + head * strides[1] + tl.cast(entry, tl.int64) * strides[3])
    return load_tile(base, streams, strides[2], columns, strides[4], mask).to(tl.float32)


@triton.jit
def _finite(m):
    """What scores are compared with: m, or 0 while all scores are −inf, whose weights are then 0 and not NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit(do_not_specialize=["H", "M", "P", "S"])
def _forward_kernel(
    query,
    query_strides,
    prefix_key,
    prefix_key_strides,
    prefix_value,
    prefix_value_strides,
    stream_key,
    stream_key_strides,
    stream_value,
    stream_value_strides,
    lengths,
    dropout,
    output,
    output_strides,
    lse,
    scale,
    H,
    M,
    P,
    S,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """softmax(q Kᵀ · scale) V of a block of streams, K and V being the prefix and each stream's suffix; and log2 Σ 2^s.

    Online softmax: m is the largest score so far, total = Σ 2^(s − m), acc = Σ 2^(s − m) v.
    """
    query = Strided(query, query_strides)
    prefix_key = Strided(prefix_key, prefix_key_strides)
    prefix_value = Strided(prefix_value, prefix_value_strides)
    stream_key = Strided(stream_key, stream_key_strides)
    stream_value = Strided(stream_value, stream_value_strides)
    output = Strided(output, output_strides)
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // H, batch_head % H
    streams = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HELD_D)
    mask = (streams < M)[:, None] & (columns < D)[None, :]
    rows = batch_head * M + streams
    base = query.data + batch * query.strides[0] + head * query.strides[1]
    q = load_tile(base, streams, query.strides[2], columns, query.strides[3], mask)  # [BLOCK_M, HELD_D]
    length = P  # the longest of the block
    own_length = P  # a query's
    if lengths.data is not None:
        if lengths.query_stride is not None:
            given = _query_lengths(lengths, batch, streams, M)
            tl.device_assert((given >= 0) & (given <= P), "prefix_lengths must be in [0, P]")
            own_length = given.to(tl.int32)  # [BLOCK_M]
            length = tl.max(own_length, 0)
        else:
            given = tl.load(lengths.data + batch * lengths.batch_stride)
            tl.device_assert((given >= 0) & (given <= P), "prefix_lengths must be in [0, P]")
            length = given.to(tl.int32)
            own_length = length

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HELD_D], tl.float32)
    base = prefix_key.data + batch * prefix_key.strides[0] + head * prefix_key.strides[1]
    keys = _Matrix(base, prefix_key.strides[2], prefix_key.strides[3])
    base = prefix_value.data + batch * prefix_value.strides[0] + head * prefix_value.strides[1]
    values = _Matrix(base, prefix_value.strides[2], prefix_value.strides[3])
    for start in range(0, length, BLOCK_P):
        entries = start + tl.arange(0, BLOCK_P)
        inside = (entries < length)[:, None] & (columns < D)[None, :]
        k = _load(keys, entries, columns, inside)  # [BLOCK_P, HELD_D]
        v = _load(values, entries, columns, inside)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_P]
        scores = tl.where(_seen(entries, length, own_length, lengths), scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1))
        subtracted = _finite(m_new)
        shrink = tl.exp2(m - subtracted)
        weights = tl.exp2(scores - subtracted[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if dropout.seed is not None:
            weights *= _prefix_keep(dropout, rows, start, BLOCK_P)
        acc = tl.dot(weights.to(v.dtype), v, acc=acc * shrink[:, None], input_precision=PRECISION)
        m = m_new

    for entry in range(0, S):
        k = _load_suffix(stream_key, batch, head, entry, streams, columns, mask)  # [BLOCK_M, HELD_D]
        v = _load_suffix(stream_value, batch, head, entry, streams, columns, mask)
        scores = tl.sum(q.to(tl.float32) * k, 1) * scale  # [BLOCK_M]
        m_new = tl.maximum(m, scores)
        subtracted = _finite(m_new)
        shrink = tl.exp2(m - subtracted)
        weights = tl.exp2(scores - subtracted)
        total = total * shrink + weights
        if dropout.seed is not None:
            weights *= _suffix_keep(dropout, rows, entry)
        acc = acc * shrink[:, None] + weights[:, None] * v
        m = m_new

    # Where there is nothing to attend to, the output is 0/1 and the logarithm that is stored −inf + 0. Where all scores
    # are −inf it is 0/0, as a softmax has it.
    total = tl.where(own_length + S > 0, total, 1.0)
    # From the block's first stream on: wide offsets of the streams themselves are held in registers all the while.
    base = output.data + (batch * output.strides[0] + head * output.strides[1])
    base += (tl.program_id(1) * BLOCK_M).to(tl.int64) * output.strides[2]
    rows_of_block = tl.arange(0, BLOCK_M).to(tl.int64)[:, None] * output.strides[2]
    offsets = rows_of_block + columns.to(tl.int64)[None, :] * output.strides[3]
    tl.store(base + offsets, (acc / total[:, None]).to(output.data.dtype.element_ty), mask=mask)
    tl.store(lse + rows, m + tl.log2(total), mask=streams < M)


@triton.jit
def _load_streams(query, output_gradient, lse, batch_head, batch, head, M, streams, columns, mask):
    """The _Streams of a block of streams."""
    base = query.data + batch * query.strides[0] + head * query.strides[1]
    q = load_tile(base, streams, query.strides[2], columns, query.strides[3], mask)
    strides = output_gradient.strides
    base = output_gradient.data + batch * strides[0] + head * strides[1]
    do = load_tile(base, streams, strides[2], columns, strides[3], mask)
    # A row beyond M gets probability 2^−inf = 0 everywhere.
    return _Streams(q, do, tl.load(lse + batch_head * M + streams, mask=streams < M, other=float("inf")))


@triton.jit
def _prefix_weights(block, k, v, scale, seen, rows, start, dropout, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr):
    """The _Weights of a block of prefix entries: each [BLOCK_M, BLOCK_P]; zero where not `seen`, as _seen says it."""
    scores = tl.dot(block.q, tl.trans(k), input_precision=PRECISION) * scale
    p = tl.where(seen, tl.exp2(scores - block.lse[:, None]), 0.0)
    dp = tl.dot(block.do, tl.trans(v), input_precision=PRECISION)
    kept = p
    if dropout.seed is not None:
        keep = _prefix_keep(dropout, rows, start, BLOCK_P)
        kept = p * keep
        dp *= keep
    return _Weights(p, kept, dp)


@triton.jit
def _suffix_weights(block, k, v, scale, rows, entry, dropout):
    """The _Weights of entry number `entry` of each stream's suffix: each [BLOCK_M]."""
    p = tl.exp2(tl.sum(block.q.to(tl.float32) * k, 1) * scale - block.lse)
    dp = tl.sum(block.do.to(tl.float32) * v, 1)
    kept = p
    if dropout.seed is not None:
        keep = _suffix_keep(dropout, rows, entry)
        kept = p * keep
        dp *= keep
    return _Weights(p, kept, dp)


@triton.jit(do_not_specialize=["H", "M", "P", "S"])
def _backward_kernel(
    query,
    query_strides,
    prefix_key,
    prefix_key_strides,
    prefix_value,
    prefix_value_strides,
    stream_key,
    stream_key_strides,
    stream_value,
    stream_value_strides,
    lengths,
    dropout,
    lse,
    deltas,
    output_gradient,
    output_gradient_strides,
    query_gradient,
    prefix_key_gradient,
    prefix_value_gradient,
    stream_key_gradient,
    stream_value_gradient,
    scale,
    gradient_scale,
    H,
    M,
    P,
    S,
    D: tl.constexpr,
    PREFIX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """Gradients of one block of streams, and of the prefix too where that block is all streams (PREFIX).

    ds = p (dp − δ), dq = Σ ds · k, dk = dsᵀ q, dv = keptᵀ do. Pass 1 sums δ = Σ p · dp, which is also Σ output · its
    gradient; summed from the very terms that it is subtracted from, it cancels exactly where a single entry has all the
    weight. Pass 2 finds keys and values in the cache. What is written is addressed from a scalar, since wide offsets of
    every entry need registers. A gradient that is not wanted is None, the others contiguous.
    """
    query = Strided(query, query_strides)
    prefix_key = Strided(prefix_key, prefix_key_strides)
    prefix_value = Strided(prefix_value, prefix_value_strides)
    stream_key = Strided(stream_key, stream_key_strides)
    stream_value = Strided(stream_value, stream_value_strides)
    output_gradient = Strided(output_gradient, output_gradient_strides)
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // H, batch_head % H
    streams = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, HELD_D)
    mask = (streams < M)[:, None] & (columns < D)[None, :]
    rows = batch_head * M + streams
    first_row = batch_head * M + tl.program_id(1) * BLOCK_M
    block = _load_streams(query, output_gradient, lse, batch_head, batch, head, M, streams, columns, mask)
    length = P
    own_length = P
    if lengths.data is not None:
        if lengths.query_stride is not None:
            own_length = _query_lengths(lengths, batch, streams, M).to(tl.int32)  # [BLOCK_M]
            length = tl.max(own_length, 0)
        else:
            length = tl.load(lengths.data + batch * lengths.batch_stride).to(tl.int32)
    base = prefix_key.data + batch * prefix_key.strides[0] + head * prefix_key.strides[1]
    keys = _Matrix(base, prefix_key.strides[2], prefix_key.strides[3])
    base = prefix_value.data + batch * prefix_value.strides[0] + head * prefix_value.strides[1]
    values = _Matrix(base, prefix_value.strides[2], prefix_value.strides[3])

    # Pass 1: δ.
    delta = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, length, BLOCK_P):
        entries = start + tl.arange(0, BLOCK_P)
        inside = (entries < length)[:, None] & (columns < D)[None, :]
        k = _load(keys, entries, columns, inside)  # [BLOCK_P, HELD_D]
        v = _load(values, entries, columns, inside)
        seen = _seen(entries, length, own_length, lengths)
        weights = _prefix_weights(block, k, v, scale, seen, rows, start, dropout, PRECISION, BLOCK_P)
        delta += tl.sum(weights.p * weights.dp, 1)
    for entry in range(0, S):
        k = _load_suffix(stream_key, batch, head, entry, streams, columns, mask)  # [BLOCK_M, HELD_D]
        v = _load_suffix(stream_value, batch, head, entry, streams, columns, mask)
        weights = _suffix_weights(block, k, v, scale, rows, entry, dropout)
        delta += weights.p * weights.dp
    if deltas is not None:
        tl.store(deltas + rows, delta, mask=streams < M)

    # Pass 2: the gradients.
    dq = tl.zeros([BLOCK_M, HELD_D], tl.float32)
    if PREFIX or query_gradient is not None:
        end = length
        if PREFIX:
            end = P  # what lies beyond the length gets zeros
        for start in range(0, end, BLOCK_P):
            entries = start + tl.arange(0, BLOCK_P)
            inside = (entries < length)[:, None] & (columns < D)[None, :]
            k = _load(keys, entries, columns, inside)  # [BLOCK_P, HELD_D]
            v = _load(values, entries, columns, inside)
            seen = _seen(entries, length, own_length, lengths)
            weights = _prefix_weights(block, k, v, scale, seen, rows, start, dropout, PRECISION, BLOCK_P)
            ds = (weights.p * (weights.dp - delta[:, None])).to(k.dtype)  # [BLOCK_M, BLOCK_P]
            dq = tl.dot(ds, k, acc=dq, input_precision=PRECISION)
            if PREFIX:
                first = (batch_head * P + start) * D
                offsets = tl.arange(0, BLOCK_P)[:, None] * D + columns[None, :]
                within = (entries < P)[:, None] & (columns < D)[None, :]
                if prefix_key_gradient is not None:
                    dk = tl.dot(tl.trans(ds), block.q, input_precision=PRECISION) * gradient_scale
                    dk = tl.where(inside, dk, 0.0)  # beyond the length 0 · NaN may be in it
                    tl.store(prefix_key_gradient + first + offsets, dk.to(k.dtype), mask=within)
                if prefix_value_gradient is not None:
                    dv = tl.dot(tl.trans(weights.kept.to(v.dtype)), block.do, input_precision=PRECISION)
                    dv = tl.where(inside, dv, 0.0)
                    tl.store(prefix_value_gradient + first + offsets, dv.to(v.dtype), mask=within)

    dtype = query.data.dtype.element_ty
    for entry in range(0, S):
        k = _load_suffix(stream_key, batch, head, entry, streams, columns, mask)  # [BLOCK_M, HELD_D]
        v = _load_suffix(stream_value, batch, head, entry, streams, columns, mask)
        weights = _suffix_weights(block, k, v, scale, rows, entry, dropout)
        ds = weights.p * (weights.dp - delta)  # [BLOCK_M]
        dq += ds[:, None] * k
        first = (first_row * S + entry) * D
        offsets = (tl.arange(0, BLOCK_M) * S)[:, None] * D + columns[None, :]
        if stream_key_gradient is not None:
            dk = (ds * gradient_scale)[:, None] * block.q.to(tl.float32)
            tl.store(stream_key_gradient + first + offsets, dk.to(dtype), mask=mask)
        if stream_value_gradient is not None:
            dv = weights.kept[:, None] * block.do.to(tl.float32)
            tl.store(stream_value_gradient + first + offsets, dv.to(dtype), mask=mask)

    if query_gradient is not None:
        offsets = tl.arange(0, BLOCK_M)[:, None] * D + columns[None, :]
        tl.store(query_gradient + first_row * D + offsets, (dq * gradient_scale).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["H", "M", "P"])
def _prefix_backward_kernel(
    query,
    query_strides,
    prefix_key,
    prefix_key_strides,
    prefix_value,
    prefix_value_strides,
    lengths,
    dropout,
    lse,
    deltas,
    output_gradient,
    output_gradient_strides,
    query_gradient,
    prefix_key_gradient,
    prefix_value_gradient,
    stream_key_gradient,
    stream_value_gradient,
    scale,
    gradient_scale,
    H,
    M,
    P,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """Gradients of one block of prefix entries, summed over all blocks of streams: for more streams than fit in one."""
    query = Strided(query, query_strides)
    prefix_key = Strided(prefix_key, prefix_key_strides)
    prefix_value = Strided(prefix_value, prefix_value_strides)
    output_gradient = Strided(output_gradient, output_gradient_strides)
    batch_head = tl.program_id(0).to(tl.int64)
    batch, head = batch_head // H, batch_head % H
    start = tl.program_id(1) * BLOCK_P
    entries = start + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, HELD_D)
    length = P  # the longest of all
    if lengths.data is not None:
        if lengths.query_stride is not None:
            length = 0
            for first in range(0, M, BLOCK_M):
                given = _query_lengths(lengths, batch, first + tl.arange(0, BLOCK_M), M)
                length = tl.maximum(length, tl.max(given.to(tl.int32), 0))
        else:
            length = tl.load(lengths.data + batch * lengths.batch_stride).to(tl.int32)
    inside = (entries < length)[:, None] & (columns < D)[None, :]
    base = prefix_key.data + batch * prefix_key.strides[0] + head * prefix_key.strides[1]
    k = load_tile(base, entries, prefix_key.strides[2], columns, prefix_key.strides[3], inside)  # [BLOCK_P, HELD_D]
    base = prefix_value.data + batch * prefix_value.strides[0] + head * prefix_value.strides[1]
    v = load_tile(base, entries, prefix_value.strides[2], columns, prefix_value.strides[3], inside)
    dk = tl.zeros([BLOCK_P, HELD_D], tl.float32)
    dv = tl.zeros([BLOCK_P, HELD_D], tl.float32)
    for first in range(0, M, BLOCK_M):
        streams = first + tl.arange(0, BLOCK_M)
        rows = batch_head * M + streams
        mask = (streams < M)[:, None] & (columns < D)[None, :]
        block = _load_streams(query, output_gradient, lse, batch_head, batch, head, M, streams, columns, mask)
        delta = tl.load(deltas + rows, mask=streams < M, other=0.0)
        own_length = length
        if lengths.query_stride is not None:
            own_length = _query_lengths(lengths, batch, streams, M).to(tl.int32)  # [BLOCK_M]
        seen = _seen(entries, length, own_length, lengths)
        weights = _prefix_weights(block, k, v, scale, seen, rows, start, dropout, PRECISION, BLOCK_P)
        ds = (weights.p * (weights.dp - delta[:, None])).to(k.dtype)  # [BLOCK_M, BLOCK_P]
        dk = tl.dot(tl.trans(ds), block.q, acc=dk, input_precision=PRECISION)
        dv = tl.dot(tl.trans(weights.kept.to(v.dtype)), block.do, acc=dv, input_precision=PRECISION)
    dk = tl.where(inside, dk, 0.0)  # beyond the length 0 · NaN may be in it
    dv = tl.where(inside, dv, 0.0)
    offsets = (batch_head * P + entries)[:, None] * D + columns[None, :]
    within = (entries < P)[:, None] & (columns < D)[None, :]
    if prefix_key_gradient is not None:
        tl.store(prefix_key_gradient + offsets, (dk * gradient_scale).to(k.dtype), mask=within)
    if prefix_value_gradient is not None:
        tl.store(prefix_value_gradient + offsets, dv.to(v.dtype), mask=within)


def _check_dim(query: Tensor) -> None:
    if query.shape[-1] > LARGEST_DIM:
        raise ValueError(
            f"query must have at most D={LARGEST_DIM} columns on the backend 'triton', found D={query.shape[-1]}"
        )


def _precision(dim: int) -> str:
    """How float32 numbers are multiplied: heads of more than 128 columns exactly, since tf32 has no room for them."""
    return "ieee" if dim > 128 else dot_precision()


def _lengths(prefix_lengths: Tensor | None) -> _Lengths:
    if prefix_lengths is None:
        return _Lengths(None, 0, None)
    strides = prefix_lengths.stride()
    return _Lengths(prefix_lengths, strides[0], strides[1] if len(strides) == 2 else None)


def _dropout(seed: Tensor | None, dropout_p: float) -> _Dropout:
    return _Dropout(seed, dropout_threshold(dropout_p), 1 / (1 - dropout_p))


def _strided_inputs(inputs: Iterable[Tensor]) -> list[Tensor | tuple[int, ...]]:
    """Each tensor and its strides."""
    return [argument for tensor in inputs for argument in strided(tensor)]


def forward(
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    result: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output and, for the backward pass, log2 of every softmax' sum: float32 [B, H, M].

    The output is written to `result` [B, H, M, D], of any strides, where that is given.
    """
    query, prefix_key, _, stream_key, _ = inputs
    _check_dim(query)
    batch, heads, streams, dim = query.shape
    if result is None:
        result = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    if query.numel() == 0:
        return result, lse
    options = launch.stream_attention(streams, dim, query.element_size(), query.device, backward=False)
    strided_inputs = _strided_inputs(inputs)
    with torch.cuda.device_of(query):
        _forward_kernel[(batch * heads, launch.blocks(streams, options["BLOCK_M"]))](
            *strided_inputs,
            _lengths(prefix_lengths),
            _dropout(seed, dropout_p),
            *strided(result),
            lse,
            scale * LOG2_E,
            heads,
            streams,
            prefix_key.shape[2],
            stream_key.shape[3],
            D=dim,
            PRECISION=_precision(dim),
            **options,
            **launch.ASSERTING,
        )
    return result, lse


def output(
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """The output alone, where there is no backward pass."""
    return forward(inputs, prefix_lengths, scale, dropout_p, seed)[0]


def backward(
    output_gradient: Tensor,
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    lse: Tensor,
    scale: float,
    dropout_p: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """The gradients of the five tensors; an empty tensor for one that is not needed."""
    query, prefix_key, _, stream_key, _ = inputs
    batch, heads, streams, dim = query.shape
    prefix = prefix_key.shape[2]
    gradients = new_gradients(inputs, needs)
    if query.numel() == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    options = launch.stream_attention(streams, dim, query.element_size(), query.device, backward=True)
    stream_blocks = launch.blocks(streams, options["BLOCK_M"])
    wants_prefix = needs[1] or needs[2]
    split_prefix = wants_prefix and stream_blocks > 1
    strided_inputs = _strided_inputs(inputs)
    deltas = torch.empty_like(lse) if split_prefix else None
    shared = (  # the arguments of both kernels between the inputs and the sizes
        _lengths(prefix_lengths),
        _dropout(seed, dropout_p),
        lse.contiguous(),
        deltas,
        *strided(output_gradient),
        *only_wanted(gradients, needs),
        scale * LOG2_E,
        scale,
    )
    with torch.cuda.device_of(query):
        _backward_kernel[(batch * heads, stream_blocks)](
            *strided_inputs,
            *shared,
            heads,
            streams,
            prefix,
            stream_key.shape[3],
            D=dim,
            PREFIX=wants_prefix and stream_blocks == 1,
            PRECISION=_precision(dim),
            **options,
        )
        if split_prefix and prefix > 0:
            options = launch.stream_attention_prefix_gradient(options, query.element_size())
            _prefix_backward_kernel[(batch * heads, launch.blocks(prefix, options["BLOCK_P"]))](
                *strided_inputs[:6],
                *shared,
                heads,
                streams,
                prefix,
                D=dim,
                PRECISION=_precision(dim),
                **options,
            )
    return gradients
