"""stream_attention on the CPU against PyTorch's ways to write it; docs/benchmarks.md says how.

Each rival has the layout that suits it best, and the same five tensors to start from: the caches of the prefix and of
the streams are separate tensors in anyone's program, since the first stays while the second grows. So the rivals built
on scaled_dot_product_attention join them, which is part of their time. In the forward pass they are also timed with
joined keys and values given, which nobody has, to show what the attention alone takes.

- folded: the streams are further batch entries of one query each, the prefix repeated for each of them;
- masked: all streams' entries in one row behind the prefix, with a mask (a sum of zeros and -inf, the form that PyTorch
  reads without converting it) by which a stream does not see the others' entries.

With dropout a rival that draws its own mask cannot agree: the formula gets the mask, drawn beforehand.

The limit is a copy that moves the bytes which must be read and written. The operator reads more than it writes, a copy
does not, so it can be faster than that.
"""

from functools import partial

import pytest
import torch
from torch.nn import functional

from bench.limits import copies
from bench.peers import OURS, compare, compiled, training_step
from plr_kernels import stream_attention, use_backend
from plr_kernels.stream_attention.keep_mask import attention_keep_mask


def shapes(suffix=""):
    """A wide model, then plr's own training shapes, d = H · D = 64 and 256, in the second of its two steps."""
    return pytest.mark.parametrize(
        ("batch", "heads", "streams", "prefix", "own", "dim", "rounds"),
        [
            pytest.param(256, 2, 4, 50, 2, 128, 30, id=f"B256 H2 M4 P50 S2 D128{suffix}", marks=pytest.mark.large),
            pytest.param(256, 2, 2, 50, 2, 32, 50, id=f"B256 H2 M2 P50 S2 D32{suffix}"),
            pytest.param(256, 2, 2, 50, 2, 128, 30, id=f"B256 H2 M2 P50 S2 D128{suffix}", marks=pytest.mark.large),
        ],
    )


def make(batch, heads, streams, prefix, own, dim):
    torch.manual_seed(0)
    query = torch.randn(batch, heads, streams, dim)
    prefix_key, prefix_value = torch.randn(2, batch, heads, prefix, dim)
    stream_key, stream_value = torch.randn(2, batch, heads, streams, own, dim)
    return query, prefix_key, prefix_value, stream_key, stream_value


def size(*tensors):
    return sum(tensor.nbytes for tensor in tensors)


def ours(*tensors, **options):
    with use_backend("cpp"):
        return stream_attention(*tensors, **options)


def formula(query, prefix_key, prefix_value, stream_key, stream_value, factor=None):
    """Nothing is joined but the scores; `factor` is what dropout multiplies the probabilities by."""
    prefix = prefix_key.shape[2]
    prefix_scores = query @ prefix_key.mT  # [B, H, M, P]
    stream_scores = (stream_key @ query.unsqueeze(-1)).squeeze(-1)  # [B, H, M, S]
    weights = (torch.cat([prefix_scores, stream_scores], dim=-1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    if factor is not None:
        weights = weights * factor
    own = weights[..., prefix:].unsqueeze(-2) @ stream_value
    return weights[..., :prefix] @ prefix_value + own.squeeze(-2)


def join_folded(prefix, own):
    """[B, H, P, D] and [B, H, M, S, D] -> [B · H, M, P + S, D]."""
    repeated = prefix.unsqueeze(2).expand(-1, -1, own.shape[2], -1, -1)
    return torch.cat([repeated, own], dim=3).flatten(0, 1)


def folded_joined(query, key, value):
    attended = functional.scaled_dot_product_attention(query.flatten(0, 1).unsqueeze(2), key, value)
    return attended.view(query.shape)


def folded(query, prefix_key, prefix_value, stream_key, stream_value):
    return folded_joined(query, join_folded(prefix_key, stream_key), join_folded(prefix_value, stream_value))


def join_masked(prefix, own):
    """[B, H, P, D] and [B, H, M, S, D] -> [B, H, P + M · S, D]."""
    return torch.cat([prefix, own.flatten(2, 3)], dim=2)


def mask_of(streams, prefix, own):
    """Zeros where a stream sees an entry of `join_masked`, else -inf: [M, P + M · S]."""
    others = torch.full((streams, streams), -torch.inf).fill_diagonal_(0).repeat_interleave(own, dim=1)
    return torch.cat([torch.zeros(streams, prefix), others], dim=1)


def masked_joined(mask):
    return lambda query, key, value: functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def masked(mask):
    def run(query, prefix_key, prefix_value, stream_key, stream_value):
        return masked_joined(mask)(query, join_masked(prefix_key, stream_key), join_masked(prefix_value, stream_value))

    return run


def forward(function, *tensors):
    def run():
        with torch.no_grad():
            return [function(*tensors)]

    return run


@shapes(" no gradients")
def test_forward(benchmark, batch, heads, streams, prefix, own, dim, rounds):
    tensors = make(batch, heads, streams, prefix, own, dim)
    query, prefix_key, prefix_value, stream_key, stream_value = tensors
    mask = mask_of(streams, prefix, own)
    joined = {
        join: (query, join(prefix_key, stream_key), join(prefix_value, stream_value))
        for join in (join_folded, join_masked)
    }
    rivals = {
        OURS: forward(ours, *tensors),
        "eager formula": forward(formula, *tensors),
        "formula under torch.compile": forward(compiled(formula), *tensors),
        "SDPA, folded": forward(folded, *tensors),
        "SDPA, masked": forward(masked(mask), *tensors),
        "SDPA, folded, joined beforehand": forward(folded_joined, *joined[join_folded]),
        "SDPA, masked, joined beforehand": forward(masked_joined(mask), *joined[join_masked]),
    }
    compare(benchmark, rivals, rounds, limit=copies(forward=size(*tensors, query)))


@shapes()
def test_training_step(benchmark, batch, heads, streams, prefix, own, dim, rounds):
    tensors = make(batch, heads, streams, prefix, own, dim)
    mask = mask_of(streams, prefix, own)
    rivals = {
        OURS: training_step(ours, *tensors),
        "eager formula": training_step(formula, *tensors),
        "formula under torch.compile": training_step(compiled(formula), *tensors),
        "SDPA, folded": training_step(folded, *tensors),
        "SDPA, masked": training_step(masked(mask), *tensors),
    }
    output = tensors[0]
    # Backward reads the inputs and the output's gradient, and writes a gradient for every input.
    limit = copies(forward=size(*tensors, output), backward=size(*tensors, output, *tensors))
    compare(benchmark, rivals, rounds, limit=limit)


@shapes(" dropout")
def test_training_step_with_dropout(benchmark, batch, heads, streams, prefix, own, dim, rounds):
    tensors = make(batch, heads, streams, prefix, own, dim)
    factor = torch.cat(attention_keep_mask(torch.tensor(3), 0.1, batch, heads, streams, prefix, own), dim=-1) / 0.9
    given = partial(formula, factor=factor)
    rivals = {
        OURS: training_step(partial(ours, dropout_p=0.1, seed=3), *tensors),
        "eager formula, mask given": training_step(given, *tensors),
        "compiled formula, mask given": training_step(compiled(given), *tensors),
    }
    compare(benchmark, rivals, rounds)
