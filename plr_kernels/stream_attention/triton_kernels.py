"""The "triton" backend of stream_attention.

The M streams of a (user, head) are the rows of one tile: the shared prefix is read once for all of them. A stream's own
entries belong to one row each, so no matrix product applies: they are visited one after the other, a row per stream.

Scores are held in units of log2, since the hardware's exponential is 2^x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.stream_attention.keep_mask import dropout_threshold
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LOG2_E, dot_precision, load_tile, new_gradient

# The tile of queries and an accumulator of its width stay in registers.
LARGEST_DIM = 512


@triton.jit
def _keep_scale(words, threshold, inverse_keep):
    """What a probability is multiplied by: 0 where it is dropped. The threshold may be 2^32, so compare in int64."""
    return tl.where(words.to(tl.int64) >= threshold, inverse_keep, 0.0)


@triton.jit
def _row_words(rows):
    return (rows & 0xFFFFFFFF).to(tl.uint32), (rows >> 32).to(tl.uint32)


@triton.jit
def _prefix_keep(seed, rows, start, threshold, inverse_keep, BLOCK_P: tl.constexpr):
    """The multipliers [BLOCK_M, BLOCK_P] of prefix entries from `start`, a multiple of 4: one draw serves four."""
    low, high = _row_words(rows)
    quads = (start // 4 + tl.arange(0, BLOCK_P // 4)).to(tl.uint32)
    zeros = tl.zeros([rows.shape[0], BLOCK_P // 4], tl.uint32)
    word0, word1, word2, word3 = tl.philox(
        tl.load(seed), zeros + quads[None, :], zeros + low[:, None], zeros + high[:, None], zeros
    )
    # [0, 2, 0, 2, ...] with [1, 3, 1, 3, ...] gives [0, 1, 2, 3, ...].
    words = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
    return _keep_scale(words, threshold, inverse_keep)


@triton.jit
def _own_keep(seed, rows, entry, threshold, inverse_keep):
    """The multipliers [BLOCK_M] of every stream's own entry number `entry`."""
    low, high = _row_words(rows)
    zeros = tl.zeros([rows.shape[0]], tl.uint32)
    word0, word1, word2, word3 = tl.philox(tl.load(seed), zeros + tl.cast(entry // 4, tl.uint32), low, high, zeros + 1)
    lane = entry % 4
    words = tl.where(lane == 0, word0, tl.where(lane == 1, word1, tl.where(lane == 2, word2, word3)))
    return _keep_scale(words, threshold, inverse_keep)


@triton.jit
def _load_own(base, batch, head, streams, entry, strides, columns, mask):
    """Entry number `entry` of each stream's own keys or values, in float32: [BLOCK_M, BLOCK_D]."""
    base += batch * strides[0] + head * strides[1] + tl.cast(entry, tl.int64) * strides[3]
    return load_tile(base, streams, strides[2], columns, strides[4], mask).to(tl.float32)


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
    lengths_stride,
    seed,
    threshold,
    inverse_keep,
    output,
    log_sums,
    scale,
    H,
    M,
    P,
    S,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // H, pair % H
    streams = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    mask = (streams < M)[:, None] & (columns < D)[None, :]
    rows = pair * M + streams
    base = query + batch * query_strides[0] + head * query_strides[1]
    q = load_tile(base, streams, query_strides[2], columns, query_strides[3], mask)
    length = P
    if lengths is not None:
        given = tl.load(lengths + batch * lengths_stride)
        tl.device_assert((given >= 0) & (given <= P), "prefix_lengths must be in [0, P]")
        length = given.to(tl.int32)

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    key_base = prefix_key + batch * prefix_key_strides[0] + head * prefix_key_strides[1]
    value_base = prefix_value + batch * prefix_value_strides[0] + head * prefix_value_strides[1]
    # Every block has an entry below `length`, so that the maximum is finite from the first block on.
    for start in range(0, length, BLOCK_P):
        entries = start + tl.arange(0, BLOCK_P)
        inside = (entries < length)[:, None] & (columns < D)[None, :]
        k = load_tile(key_base, entries, prefix_key_strides[2], columns, prefix_key_strides[3], inside)
        v = load_tile(value_base, entries, prefix_value_strides[2], columns, prefix_value_strides[3], inside)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((entries < length)[None, :], scores, float("-inf"))
        raised = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp2(maximum - raised)
        weights = tl.exp2(scores - raised[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if seed is not None:
            weights *= _prefix_keep(seed, rows, start, threshold, inverse_keep, BLOCK_P)
        weighted = tl.dot(weights.to(v.dtype), v, acc=weighted * shrink[:, None], input_precision=PRECISION)
        maximum = raised

    for entry in range(0, S):
        k = _load_own(stream_key, batch, head, streams, entry, stream_key_strides, columns, mask)
        v = _load_own(stream_value, batch, head, streams, entry, stream_value_strides, columns, mask)
        scores = tl.sum(q.to(tl.float32) * k, 1) * scale
        raised = tl.maximum(maximum, scores)
        shrink = tl.exp2(maximum - raised)
        weights = tl.exp2(scores - raised)
        total = total * shrink + weights
        if seed is not None:
            weights *= _own_keep(seed, rows, entry, threshold, inverse_keep)
        weighted = weighted * shrink[:, None] + weights[:, None] * v
        maximum = raised

    # Where there is nothing to attend to, the output is 0/1 and the logarithm that is stored −inf + 0.
    total = tl.where(total > 0, total, 1.0)
    offsets = rows[:, None] * D + columns[None, :]
    tl.store(output + offsets, (weighted / total[:, None]).to(output.dtype.element_ty), mask=mask)
    tl.store(log_sums + rows, maximum + tl.log2(total), mask=streams < M)


@triton.jit
def _load_streams(
    query,
    query_strides,
    output_gradient,
    output_gradient_strides,
    log_sums,
    pair,
    batch,
    head,
    M,
    streams,
    columns,
    mask,
):
    """Of a block of streams: queries, the output's gradient, and log2 of the softmax' sum."""
    base = query + batch * query_strides[0] + head * query_strides[1]
    q = load_tile(base, streams, query_strides[2], columns, query_strides[3], mask)
    base = output_gradient + batch * output_gradient_strides[0] + head * output_gradient_strides[1]
    do = load_tile(base, streams, output_gradient_strides[2], columns, output_gradient_strides[3], mask)
    # A row beyond M gets probability 2^−inf = 0 everywhere.
    log_sum = tl.load(log_sums + pair * M + streams, mask=streams < M, other=float("inf"))
    return q, do, log_sum


@triton.jit
def _prefix_weights(
    q,
    do,
    log_sum,
    k,
    v,
    scale,
    inside,
    rows,
    start,
    seed,
    threshold,
    inverse_keep,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Probabilities, what the values are multiplied by, and the probabilities' gradient: each [BLOCK_M, BLOCK_P]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    weights = tl.where(inside[None, :], tl.exp2(scores - log_sum[:, None]), 0.0)
    weights_gradient = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    kept = weights
    if seed is not None:
        keep = _prefix_keep(seed, rows, start, threshold, inverse_keep, BLOCK_P)
        kept = weights * keep
        weights_gradient *= keep
    return weights, kept, weights_gradient


@triton.jit
def _own_weights(q, do, log_sum, k, v, scale, rows, entry, seed, threshold, inverse_keep):
    """The same for each stream's own entry number `entry`: each [BLOCK_M]."""
    weights = tl.exp2(tl.sum(q.to(tl.float32) * k, 1) * scale - log_sum)
    weights_gradient = tl.sum(do.to(tl.float32) * v, 1)
    kept = weights
    if seed is not None:
        keep = _own_keep(seed, rows, entry, threshold, inverse_keep)
        kept = weights * keep
        weights_gradient *= keep
    return weights, kept, weights_gradient


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
    lengths_stride,
    seed,
    threshold,
    inverse_keep,
    log_sums,
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
    BLOCK_D: tl.constexpr,
):
    """Gradients of one block of streams, and of the prefix too where that block is all streams (PREFIX).

    A gradient that is None is not wanted. A first pass sums δ = Σ p · (gradient by p), which is Σ output · its gradient
    too; summed from the very terms that it is subtracted from, it cancels exactly where a single entry has all the
    weight. The second pass finds keys and values in the cache. What is written is addressed from a scalar, since wide
    offsets of every entry need registers.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // H, pair % H
    streams = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    mask = (streams < M)[:, None] & (columns < D)[None, :]
    rows = pair * M + streams
    first_row = pair * M + tl.program_id(1) * BLOCK_M
    q, do, log_sum = _load_streams(
        query,
        query_strides,
        output_gradient,
        output_gradient_strides,
        log_sums,
        pair,
        batch,
        head,
        M,
        streams,
        columns,
        mask,
    )
    length = P
    if lengths is not None:
        length = tl.load(lengths + batch * lengths_stride).to(tl.int32)

    key_base = prefix_key + batch * prefix_key_strides[0] + head * prefix_key_strides[1]
    value_base = prefix_value + batch * prefix_value_strides[0] + head * prefix_value_strides[1]
    delta = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, length, BLOCK_P):
        entries = start + tl.arange(0, BLOCK_P)
        inside = (entries < length)[:, None] & (columns < D)[None, :]
        k = load_tile(key_base, entries, prefix_key_strides[2], columns, prefix_key_strides[3], inside)
        v = load_tile(value_base, entries, prefix_value_strides[2], columns, prefix_value_strides[3], inside)
        weights, _, weights_gradient = _prefix_weights(
            q,
            do,
            log_sum,
            k,
            v,
            scale,
            entries < length,
            rows,
            start,
            seed,
            threshold,
            inverse_keep,
            PRECISION,
            BLOCK_P,
        )
        delta += tl.sum(weights * weights_gradient, 1)
    for entry in range(0, S):
        k = _load_own(stream_key, batch, head, streams, entry, stream_key_strides, columns, mask)
        v = _load_own(stream_value, batch, head, streams, entry, stream_value_strides, columns, mask)
        weights, _, weights_gradient = _own_weights(
            q, do, log_sum, k, v, scale, rows, entry, seed, threshold, inverse_keep
        )
        delta += weights * weights_gradient
    if deltas is not None:
        tl.store(deltas + rows, delta, mask=streams < M)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if PREFIX or query_gradient is not None:
        end = length
        if PREFIX:
            end = P  # what lies beyond the length gets zeros
        for start in range(0, end, BLOCK_P):
            entries = start + tl.arange(0, BLOCK_P)
            inside = (entries < length)[:, None] & (columns < D)[None, :]
            k = load_tile(key_base, entries, prefix_key_strides[2], columns, prefix_key_strides[3], inside)
            v = load_tile(value_base, entries, prefix_value_strides[2], columns, prefix_value_strides[3], inside)
            weights, kept, weights_gradient = _prefix_weights(
                q,
                do,
                log_sum,
                k,
                v,
                scale,
                entries < length,
                rows,
                start,
                seed,
                threshold,
                inverse_keep,
                PRECISION,
                BLOCK_P,
            )
            ds = (weights * (weights_gradient - delta[:, None])).to(k.dtype)
            dq = tl.dot(ds, k, acc=dq, input_precision=PRECISION)
            if PREFIX:
                first = (pair * P + start) * D
                offsets = tl.arange(0, BLOCK_P)[:, None] * D + columns[None, :]
                within = (entries < P)[:, None] & (columns < D)[None, :]
                if prefix_key_gradient is not None:
                    dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION) * gradient_scale
                    tl.store(prefix_key_gradient + first + offsets, dk.to(k.dtype), mask=within)
                if prefix_value_gradient is not None:
                    dv = tl.dot(tl.trans(kept.to(v.dtype)), do, input_precision=PRECISION)
                    tl.store(prefix_value_gradient + first + offsets, dv.to(v.dtype), mask=within)

    for entry in range(0, S):
        k = _load_own(stream_key, batch, head, streams, entry, stream_key_strides, columns, mask)
        v = _load_own(stream_value, batch, head, streams, entry, stream_value_strides, columns, mask)
        weights, kept, weights_gradient = _own_weights(
            q, do, log_sum, k, v, scale, rows, entry, seed, threshold, inverse_keep
        )
        ds = weights * (weights_gradient - delta)
        dq += ds[:, None] * k
        first = (first_row * S + entry) * D
        offsets = (tl.arange(0, BLOCK_M) * S)[:, None] * D + columns[None, :]
        if stream_key_gradient is not None:
            dk = (ds * gradient_scale)[:, None] * q.to(tl.float32)
            tl.store(stream_key_gradient + first + offsets, dk.to(stream_key_gradient.dtype.element_ty), mask=mask)
        if stream_value_gradient is not None:
            dv = kept[:, None] * do.to(tl.float32)
            tl.store(stream_value_gradient + first + offsets, dv.to(stream_value_gradient.dtype.element_ty), mask=mask)

    if query_gradient is not None:
        offsets = tl.arange(0, BLOCK_M)[:, None] * D + columns[None, :]
        query_gradient += first_row * D
        tl.store(query_gradient + offsets, (dq * gradient_scale).to(query_gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "M", "P"])
def _prefix_backward_kernel(
    query,
    query_strides,
    prefix_key,
    prefix_key_strides,
    prefix_value,
    prefix_value_strides,
    lengths,
    lengths_stride,
    seed,
    threshold,
    inverse_keep,
    log_sums,
    deltas,
    output_gradient,
    output_gradient_strides,
    prefix_key_gradient,
    prefix_value_gradient,
    scale,
    gradient_scale,
    H,
    M,
    P,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of one block of prefix entries, summed over all blocks of streams: for more streams than fit in one."""
    pair = tl.program_id(0).to(tl.int64)
    batch, head = pair // H, pair % H
    start = tl.program_id(1) * BLOCK_P
    entries = start + tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_D)
    length = P
    if lengths is not None:
        length = tl.load(lengths + batch * lengths_stride).to(tl.int32)
    inside = (entries < length)[:, None] & (columns < D)[None, :]
    base = prefix_key + batch * prefix_key_strides[0] + head * prefix_key_strides[1]
    k = load_tile(base, entries, prefix_key_strides[2], columns, prefix_key_strides[3], inside)
    base = prefix_value + batch * prefix_value_strides[0] + head * prefix_value_strides[1]
    v = load_tile(base, entries, prefix_value_strides[2], columns, prefix_value_strides[3], inside)
    dk = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for first in range(0, M, BLOCK_M):
        streams = first + tl.arange(0, BLOCK_M)
        mask = (streams < M)[:, None] & (columns < D)[None, :]
        q, do, log_sum = _load_streams(
            query,
            query_strides,
            output_gradient,
            output_gradient_strides,
            log_sums,
            pair,
            batch,
            head,
            M,
            streams,
            columns,
            mask,
        )
        delta = tl.load(deltas + pair * M + streams, mask=streams < M, other=0.0)
        weights, kept, weights_gradient = _prefix_weights(
            q,
            do,
            log_sum,
            k,
            v,
            scale,
            entries < length,
            pair * M + streams,
            start,
            seed,
            threshold,
            inverse_keep,
            PRECISION,
            BLOCK_P,
        )
        ds = (weights * (weights_gradient - delta[:, None])).to(k.dtype)
        dk = tl.dot(tl.trans(ds), q, acc=dk, input_precision=PRECISION)
        dv = tl.dot(tl.trans(kept.to(v.dtype)), do, acc=dv, input_precision=PRECISION)
    offsets = (pair * P + entries)[:, None] * D + columns[None, :]
    within = (entries < P)[:, None] & (columns < D)[None, :]
    if prefix_key_gradient is not None:
        tl.store(prefix_key_gradient + offsets, (dk * gradient_scale).to(k.dtype), mask=within)
    if prefix_value_gradient is not None:
        tl.store(prefix_value_gradient + offsets, dv.to(v.dtype), mask=within)


def _check_dim(query: Tensor) -> None:
    if query.shape[-1] > LARGEST_DIM:
        raise ValueError(
            f"query must have at most D={LARGEST_DIM} columns on the backend 'triton', got D={query.shape[-1]}"
        )


def _precision(dim: int) -> str:
    """How float32 numbers are multiplied: heads of more than 128 columns exactly, since tf32 has no room for them."""
    return "ieee" if dim > 128 else dot_precision()


def _lengths_arguments(prefix_lengths: Tensor | None) -> tuple[Tensor | None, int]:
    return prefix_lengths, 0 if prefix_lengths is None else prefix_lengths.stride(0)


def _dropout_arguments(seed: Tensor | None, dropout_p: float) -> tuple[Tensor | None, int, float]:
    return seed, dropout_threshold(dropout_p), 1 / (1 - dropout_p)


def forward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output and, for the backward pass, log2 of every softmax' sum: float32 [B, H, M]."""
    query, prefix_key, prefix_value, stream_key, stream_value = inputs
    _check_dim(query)
    batch, heads, streams, dim = query.shape
    result = query.new_empty(query.shape)
    log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    if query.numel() == 0:
        return result, log_sums
    options = launch.stream_attention(streams, dim, query.element_size(), query.device, backward=False)
    with torch.cuda.device_of(query):
        _forward_kernel[(batch * heads, launch.blocks(streams, options["BLOCK_M"]))](
            query,
            query.stride(),
            prefix_key,
            prefix_key.stride(),
            prefix_value,
            prefix_value.stride(),
            stream_key,
            stream_key.stride(),
            stream_value,
            stream_value.stride(),
            *_lengths_arguments(prefix_lengths),
            *_dropout_arguments(seed, dropout_p),
            result,
            log_sums,
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
    return result, log_sums


def output(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """The output alone, where there is no backward pass."""
    return forward(inputs, prefix_lengths, scale, dropout_p, seed)[0]


def backward(
    output_gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    log_sums: Tensor,
    scale: float,
    dropout_p: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the five tensors; an empty tensor for one that is not needed."""
    query, prefix_key, prefix_value, stream_key, stream_value = inputs
    batch, heads, streams, dim = query.shape
    prefix = prefix_key.shape[2]
    gradients = tuple(new_gradient(tensor, wanted) for tensor, wanted in zip(inputs, needs, strict=True))
    if query.numel() == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    wanted = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    options = launch.stream_attention(streams, dim, query.element_size(), query.device, backward=True)
    stream_blocks = launch.blocks(streams, options["BLOCK_M"])
    prefix_arguments = (prefix_key, prefix_key.stride(), prefix_value, prefix_value.stride())
    dropout_arguments = _dropout_arguments(seed, dropout_p)
    split_prefix = (needs[1] or needs[2]) and stream_blocks > 1
    deltas = torch.empty_like(log_sums) if split_prefix else None
    saved = (log_sums.contiguous(), deltas, output_gradient, output_gradient.stride())
    scales = (scale * LOG2_E, scale)
    with torch.cuda.device_of(query):
        _backward_kernel[(batch * heads, stream_blocks)](
            query,
            query.stride(),
            *prefix_arguments,
            stream_key,
            stream_key.stride(),
            stream_value,
            stream_value.stride(),
            *_lengths_arguments(prefix_lengths),
            *dropout_arguments,
            *saved,
            *wanted,
            *scales,
            heads,
            streams,
            prefix,
            stream_key.shape[3],
            D=dim,
            PREFIX=(needs[1] or needs[2]) and stream_blocks == 1,
            PRECISION=_precision(dim),
            **options,
        )
        if split_prefix and prefix > 0:
            _prefix_backward_kernel[(batch * heads, launch.blocks(prefix, options["BLOCK_P"]))](
                query,
                query.stride(),
                *prefix_arguments,
                *_lengths_arguments(prefix_lengths),
                *dropout_arguments,
                *saved,
                *wanted[1:3],
                *scales,
                heads,
                streams,
                prefix,
                D=dim,
                PRECISION=_precision(dim),
                **options,
            )
    return gradients
