"""stream_attention on the CPU against PyTorch's ways to write it; docs/benchmarks.md says how.

Each peer has the layout that suits it best, and the same five tensors to start from: the caches of the prefix and of
the streams are separate tensors in anyone's program, since the first stays while the second grows. So the peers built
on scaled_dot_product_attention join them, which is part of their time. In the forward pass they are also timed with
joined keys and values given, which nobody has, to show what the attention alone takes.

- folded: the streams are further batch entries of one query each, the prefix repeated for each of them;
- masked: all streams' entries in one row behind the prefix, with a mask (a sum of zeros and -inf, the form that PyTorch
  reads without converting it) by which a stream does not see the others' entries.

With dropout a peer that draws a mask of its own cannot agree: the formula gets the mask, drawn beforehand.

The limit moves the bytes which must be read and written: of the forward pass, which reads nearly all of them, at the
rate of summing as many or of copying as many, whichever is faster; of the backward pass, which writes as much, of
copying.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.attention import folded, folded_joined, formula, join_folded, join_masked, mask_of, masked, masked_joined
from bench.limits import copies, reads
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
