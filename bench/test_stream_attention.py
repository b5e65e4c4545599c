"""stream_attention on the CPU against PyTorch's ways to write it; docs/benchmarks.md says how.

Each peer has the layout that suits it best, and the same five tensors to start from: the caches of the prefix and of
the streams are separate tensors in anyone's program, since the first stays while the second grows. So the peers built
on scaled_dot_product_attention join them, which is part of their time. In the forward pass they are also timed with
joined keys and values given, which nobody has, to show what the attention alone takes.

- folded: the streams are further batch entries of one query each, the prefix repeated for each of them;
- masked: all streams' entries in one row behind the prefix, with a mask (a sum of zeros and -inf, the form that PyTorch
  reads without converting it) by which a stream does not see the others' entries.

With dropout a peer that draws a mask of its own cannot agree: the formula gets the mask, drawn beforehand.

Where all positions of a sequence reason at once (a length per query), the mask of the joined form says what each
position sees, and a further way is ours with positions as further batch entries, as where each is a row of its own.

The limit moves the bytes which must be read and written: of the forward pass, which reads nearly all of them, at the
rate of summing as many or of copying as many, whichever is faster; of the backward pass, which writes as much, of
copying. With a length per query it is that or the products of what is seen, whichever takes longer.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.attention import (
    folded,
    folded_joined,
    formula,
    join_folded,
    join_masked,
    lengths_of_positions,
    mask_of,
    mask_of_positions,
    masked,
    masked_joined,
    seen_by_positions,
)
from bench.limits import copies, reads, slowest, square_products
from bench.peers import compare, compiled, training_step
from bench.records import OURS
from plr_kernels import stream_attention, use_backend
from plr_kernels.stream_attention.keep_mask import attention_keep_mask


def shapes(kind=""):
    """A wide model, then plr's own training shapes, d = H · D = 64 and 256, in the second of its two steps."""
    return pytest.mark.parametrize(
        ("batch", "heads", "streams", "prefix", "suffix", "dim", "rounds"),
        [
            pytest.param(256, 2, 4, 50, 2, 128, 30, id=f"B256 H2 M4 P50 S2 D128{kind}", marks=pytest.mark.large),
            pytest.param(256, 2, 2, 50, 2, 32, 50, id=f"B256 H2 M2 P50 S2 D32{kind}"),
            pytest.param(256, 2, 2, 50, 2, 128, 30, id=f"B256 H2 M2 P50 S2 D128{kind}", marks=pytest.mark.large),
            pytest.param(4, 2, 2, 5, 2, 16, 2, id=f"B4 H2 M2 P5 S2 D16{kind}", marks=pytest.mark.tiny),
        ],
    )


def make(batch, heads, streams, prefix, suffix, dim):
    torch.manual_seed(0)
    query = torch.randn(batch, heads, streams, dim)
    prefix_key, prefix_value = torch.randn(2, batch, heads, prefix, dim)
    stream_key, stream_value = torch.randn(2, batch, heads, streams, suffix, dim)
    return query, prefix_key, prefix_value, stream_key, stream_value


def size(*tensors):
    return sum(tensor.nbytes for tensor in tensors)


def ours(*tensors, **options):
    with use_backend("cpp"):
        return stream_attention(*tensors, **options)


def forward(function, *tensors):
    def run():
        with torch.no_grad():
            return [function(*tensors)]

    return run


@shapes(" no gradients")
def test_forward(benchmark, batch, heads, streams, prefix, suffix, dim, rounds):
    tensors = make(batch, heads, streams, prefix, suffix, dim)
    query, prefix_key, prefix_value, stream_key, stream_value = tensors
    mask = mask_of(streams, prefix, suffix)
    joined = {
        join: (query, join(prefix_key, stream_key), join(prefix_value, stream_value))
        for join in (join_folded, join_masked)
    }
    implementations = {
        OURS: forward(ours, *tensors),
        "eager formula": forward(formula, *tensors),
        "formula under torch.compile": forward(compiled(formula), *tensors),
        "SDPA, folded": forward(folded, *tensors),
        "SDPA, masked": forward(masked(mask), *tensors),
        "SDPA, folded, joined beforehand": forward(folded_joined, *joined[join_folded]),
        "SDPA, masked, joined beforehand": forward(masked_joined(mask), *joined[join_masked]),
    }
    compare(benchmark, implementations, rounds, limit=reads(forward=size(*tensors, query)))


@shapes()
def test_training_step(benchmark, batch, heads, streams, prefix, suffix, dim, rounds):
    tensors = make(batch, heads, streams, prefix, suffix, dim)
    mask = mask_of(streams, prefix, suffix)
    implementations = {
        OURS: training_step(ours, *tensors),
        "eager formula": training_step(formula, *tensors),
        "formula under torch.compile": training_step(compiled(formula), *tensors),
        "SDPA, folded": training_step(folded, *tensors),
        "SDPA, masked": training_step(masked(mask), *tensors),
    }
    output = tensors[0]
    # Backward reads the inputs and the output's gradient, and writes a gradient for every input.
    limit = copies(forward=size(*tensors, output), backward=size(*tensors, output, *tensors))
    compare(benchmark, implementations, rounds, limit=limit)


@shapes(" dropout")
def test_training_step_with_dropout(benchmark, batch, heads, streams, prefix, suffix, dim, rounds):
    tensors = make(batch, heads, streams, prefix, suffix, dim)
    factor = torch.cat(attention_keep_mask(torch.tensor(3), 0.1, batch, heads, streams, prefix, suffix), dim=-1) / 0.9
    given = partial(formula, factor=factor)
    implementations = {
        OURS: training_step(partial(ours, dropout_p=0.1, seed=3), *tensors),
        "eager formula, mask given": training_step(given, *tensors),
        "compiled formula, mask given": training_step(compiled(given), *tensors),
    }
    compare(benchmark, implementations, rounds)


def position_by_position(lengths, query, prefix_key, prefix_value, stream_key, stream_value):
    """Positions as further batch entries, the prefix repeated for each."""
    batch, heads, queries, dim = query.shape
    positions = prefix_key.shape[2]

    def folded(tensor):  # [B, H, positions · M, …] -> [B · positions, H, M, …]
        return tensor.unflatten(2, (positions, queries // positions)).transpose(1, 2).flatten(0, 1)

    def repeated(tensor):
        return tensor.unsqueeze(1).expand(-1, positions, -1, -1, -1).flatten(0, 1)

    parts = folded(query), repeated(prefix_key), repeated(prefix_value), folded(stream_key), folded(stream_value)
    attended = ours(*parts, prefix_lengths=lengths)
    return attended.unflatten(0, (batch, positions)).transpose(1, 2).reshape(batch, heads, queries, dim)


def positions(kind=""):
    """All positions of 64 histories at once, in the first of plr's steps."""
    return pytest.mark.parametrize(
        ("batch", "positions", "streams", "suffix", "dim", "rounds"),
        [
            pytest.param(64, 50, 2, 1, 32, 30, id=f"B64 H2 positions 50 M2 S1 D32{kind}"),
            pytest.param(64, 50, 2, 1, 64, 30, id=f"B64 H2 positions 50 M2 S1 D64{kind}", marks=pytest.mark.large),
            pytest.param(64, 50, 2, 1, 128, 30, id=f"B64 H2 positions 50 M2 S1 D128{kind}", marks=pytest.mark.large),
            pytest.param(2, 9, 2, 1, 16, 2, id=f"B2 H2 positions 9 M2 S1 D16{kind}", marks=pytest.mark.tiny),
        ],
    )


@positions()
def test_all_positions(benchmark, batch, positions, streams, suffix, dim, rounds):
    queries = positions * streams
    tensors = make(batch, 2, queries, positions, suffix, dim)
    lengths = lengths_of_positions(positions, streams)
    seen = seen_by_positions(positions, streams)
    masked_formula = partial(formula, seen=seen)
    implementations = {
        OURS: training_step(partial(ours, prefix_lengths=lengths.expand(batch, -1)), *tensors),
        "eager formula": training_step(masked_formula, *tensors),
        "formula under torch.compile": training_step(compiled(masked_formula), *tensors),
        "SDPA, masked": training_step(masked(mask_of_positions(positions, streams, suffix)), *tensors),
        "ours, a row per position": training_step(
            partial(position_by_position, torch.arange(1, positions + 1).repeat(batch)), *tensors
        ),
    }
    output = tensors[0]
    moved = copies(forward=size(*tensors, output), backward=size(*tensors, output, *tensors))
    product = 2 * batch * 2 * (int(lengths.sum()) + queries * suffix) * dim  # of what is seen
    limit = slowest(moved, square_products(forward=2 * product, backward=5 * product))
    compare(benchmark, implementations, rounds, limit=limit)


@positions(" dropout")
def test_all_positions_with_dropout(benchmark, batch, positions, streams, suffix, dim, rounds):
    queries = positions * streams
    tensors = make(batch, 2, queries, positions, suffix, dim)
    lengths = lengths_of_positions(positions, streams).expand(batch, -1)
    kept = attention_keep_mask(torch.tensor(3), 0.1, batch, 2, queries, positions, suffix)
    given = partial(formula, seen=seen_by_positions(positions, streams), factor=torch.cat(kept, dim=-1) / 0.9)
    implementations = {
        OURS: training_step(partial(ours, prefix_lengths=lengths, dropout_p=0.1, seed=3), *tensors),
        "eager formula, mask given": training_step(given, *tensors),
        "compiled formula, mask given": training_step(compiled(given), *tensors),
    }
    compare(benchmark, implementations, rounds)
