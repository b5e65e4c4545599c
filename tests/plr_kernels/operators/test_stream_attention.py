"""stream_attention against loops over single queries, and what it promises about padding, dropout and arguments."""

from __future__ import annotations

import math

import pytest
import torch

from plr_kernels import stream_attention, use_backend
from plr_kernels.stream_attention.keep_mask import attention_keep_mask
from plr_kernels.stream_attention.reference import stream_attention_weights
from tests.plr_kernels.harness import STREAM_ATTENTION, evaluate, make_case, targets

SIZES = {
    "batch": 3,
    "heads": 2,
    "streams": 2,
    "prefix": 5,
    "suffix": 3,
    "dim": 4,
    "lengths": torch.int64,
    "scale": None,
    "dropout_p": 0.0,
}


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in STREAM_ATTENTION.implementations:
        pytest.skip("this backend has no stream_attention")
    with use_backend(request.param.backend):
        yield request.param


def make(target, *, dtype=torch.float32, **sizes):
    return make_case(STREAM_ATTENTION, {**SIZES, **sizes}, dtype=dtype, device=target.device)


def one_query_at_a_time(case):
    """Scores, exponentials and sums entry by entry, in Python floats."""
    tensors = {name: tensor.double().tolist() for name, tensor in case.tensors.items()}
    batch, heads, streams, dim = case.tensors["query"].shape
    prefix, suffix = case.tensors["prefix_key"].shape[2], case.tensors["stream_key"].shape[3]
    lengths = case.options.get("prefix_lengths", torch.full((batch,), prefix))
    lengths = (lengths if lengths.ndim == 2 else lengths[:, None].expand(batch, streams)).tolist()
    dropout_p = case.options["dropout_p"]
    keep_prefix = keep_own = None
    if dropout_p:
        masks = attention_keep_mask(case.options["seed"], dropout_p, batch, heads, streams, prefix, suffix)
        keep_prefix, keep_own = (mask.tolist() for mask in masks)
    output = torch.zeros(batch, heads, streams, dim, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for m in range(streams):
                query = tensors["query"][b][h][m]
                entries = [
                    (tensors["prefix_key"][b][h][p], tensors["prefix_value"][b][h][p], ("prefix", p))
                    for p in range(lengths[b][m])
                ]
                entries += [
                    (tensors["stream_key"][b][h][m][s], tensors["stream_value"][b][h][m][s], ("suffix", s))
                    for s in range(suffix)
                ]
                weights = [
                    math.exp(sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(dim))
                    for key, _, _ in entries
                ]
                total = sum(weights)
                for weight, (_, value, (part, index)) in zip(weights, entries, strict=True):
                    if dropout_p:
                        kept = (keep_prefix if part == "prefix" else keep_own)[b][h][m][index]
                        weight = weight / (1 - dropout_p) if kept else 0.0
                    for d in range(dim):
                        output[b, h, m, d] += weight / total * value[d]
    return output


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"dropout_p": 0.4},
        {"suffix": 0},
        {"prefix": 0},
        {"lengths": None},
        {"per_query": True, "streams": 6, "dropout_p": 0.4},
        {"per_query": True, "streams": 19, "suffix": 0},
    ],
    ids=str,
)
def test_equals_one_query_at_a_time(target, sizes):
    case = make(target, **sizes)
    output = stream_attention(**case.tensors, **case.options)
    torch.testing.assert_close(output.double().cpu(), one_query_at_a_time(case), rtol=1e-5, atol=1e-6)


def test_streams_do_not_see_each_other(target):
    case = make(target)
    before = stream_attention(**case.tensors, **case.options)
    for name in ("query", "stream_key", "stream_value"):
        case.tensors[name][:, :, 1] += 1
    after = stream_attention(**case.tensors, **case.options)
    assert torch.equal(after[:, :, 0], before[:, :, 0])
    assert not torch.equal(after[:, :, 1], before[:, :, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_reaches_nothing(target, dtype, garbage):
    case = make(target, dtype=dtype, dropout_p=0.3)
    lengths = torch.tensor([0, 2, 5], device=target.device)
    case.options["prefix_lengths"] = lengths
    clean = evaluate(stream_attention, case)
    for b, length in enumerate(lengths.tolist()):
        case.tensors["prefix_key"][b, :, length:] = garbage
        case.tensors["prefix_value"][b, :, length:] = garbage
    for name, result in evaluate(stream_attention, case).items():
        assert torch.equal(result, clean[name]), name
    for name in ("gradient of prefix_key", "gradient of prefix_value"):
        for b, length in enumerate(lengths.tolist()):
            assert not clean[name][b, :, length:].any()
            assert clean[name][b, :, :length].any(dim=-1).sum() > 0 or length == 0


def test_longer_padding_changes_nothing(target):
    """The same rows in a batch padded further: the draws of dropout stay where they are."""
    case = make(target, dropout_p=0.5)
    case.options["prefix_lengths"] = torch.tensor([1, 5, 4], device=target.device)
    output = stream_attention(**case.tensors, **case.options)
    for name in ("prefix_key", "prefix_value"):
        case.tensors[name] = torch.nn.functional.pad(case.tensors[name], (0, 0, 0, 6), value=math.nan)
    padded = stream_attention(**case.tensors, **case.options)
    torch.testing.assert_close(padded, output)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_nothing_to_attend_to(target, dropout_p):
    case = make(target, suffix=0, dropout_p=dropout_p)
    case.options["prefix_lengths"] = torch.tensor([0, 3, 0], device=target.device)
    with torch.autograd.detect_anomaly(check_nan=True):
        results = evaluate(stream_attention, case)
    for name, result in results.items():
        assert result.isfinite().all(), name
        assert not result[0].any(), name
        assert not result[2].any(), name
    assert results["output"][1].any()
    assert not evaluate(stream_attention, make(target, suffix=0, prefix=0))["output"].any()


def test_dropout_is_unbiased_and_scaled(target):
    """Values of 1: the output is the sum of the kept probabilities over 1 − p, and 1 on average."""
    case = make(target, batch=64, heads=4, streams=8, prefix=30, lengths=None, dropout_p=0.25)
    case.tensors["prefix_value"].fill_(1)
    case.tensors["stream_value"].fill_(1)
    output = stream_attention(**case.tensors, **case.options)
    rows = output[..., 0]
    assert rows.std() > 0.05
    assert abs(rows.mean().item() - 1) < 5 * rows.std().item() / rows.numel() ** 0.5


def test_seed_decides_the_mask(target):
    case = make(target, prefix=40, lengths=None, dropout_p=0.5)
    options = {**case.options, "seed": 7}
    output = stream_attention(**case.tensors, **options)
    as_tensor = {**options, "seed": torch.tensor(7, device=target.device)}
    assert torch.equal(stream_attention(**case.tensors, **as_tensor), output)
    for other in (8, -7, 7 + 2**32):
        assert not torch.equal(stream_attention(**case.tensors, **{**options, "seed": other}), output)
    without = stream_attention(**case.tensors, **{**options, "dropout_p": 0.0})
    assert not torch.equal(without, output)


def test_scale(target):
    case = make(target)
    options = {**case.options, "scale": None}
    expected = stream_attention(**case.tensors, **options)
    torch.testing.assert_close(stream_attention(**case.tensors, **{**options, "scale": 0.5}), expected)
    doubled = {**case.tensors, "query": case.tensors["query"] * 2}
    torch.testing.assert_close(stream_attention(**doubled, **{**options, "scale": 0.25}), expected)


def test_weights_for_inspection():
    case = make_case(STREAM_ATTENTION, SIZES)
    lengths = torch.tensor([0, 2, 5])
    weights = stream_attention_weights(
        case.tensors["query"], case.tensors["prefix_key"], case.tensors["stream_key"], lengths, 0.5
    )
    assert weights.shape == (3, 2, 2, 5 + 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 2))
    for b, length in enumerate(lengths.tolist()):
        assert not weights[b, ..., length:5].any()
    prefix, suffix = weights.split([5, 3], dim=-1)
    values = prefix @ case.tensors["prefix_value"] + torch.einsum(
        "bhms,bhmsd->bhmd", suffix, case.tensors["stream_value"]
    )
    expected = stream_attention(**case.tensors, prefix_lengths=lengths, scale=0.5)
    torch.testing.assert_close(values, expected)


def test_weights_are_zero_where_there_is_nothing_to_attend_to():
    case = make_case(STREAM_ATTENTION, {**SIZES, "suffix": 0})
    lengths = torch.tensor([0, 2, 5])
    weights = stream_attention_weights(
        case.tensors["query"], case.tensors["prefix_key"], case.tensors["stream_key"], lengths, 0.5
    )
    assert not weights[0].any()
    torch.testing.assert_close(weights[1:].sum(-1), torch.ones(2, 2, 2))


WRONG_ARGUMENTS = {
    "query must be a torch.Tensor, found list": {"query": [1.0]},
    "query must have one of the dtypes .* found torch.int64": {"query": torch.zeros(3, 2, 2, 4, dtype=torch.int64)},
    r"query must have shape \[B, H, M, D\], found \[3, 2, 4\]": {"query": torch.zeros(3, 2, 4)},
    r"prefix_key must have shape \[B=3, H=2, P, D=4\], found \[3, 2, 5, 9\]": {"prefix_key": torch.zeros(3, 2, 5, 9)},
    r"prefix_value must have shape \[B=3, H=2, P=5, D=4\], found \[3, 2, 6, 4\]": {
        "prefix_value": torch.zeros(3, 2, 6, 4)
    },
    r"stream_key must have shape \[B=3, H=2, M=2, S, D=4\], found \[3, 2, 3, 3, 4\]": {
        "stream_key": torch.zeros(3, 2, 3, 3, 4)
    },
    r"stream_value must have shape .*S=3, D=4\], found \[3, 2, 2, 1, 4\]": {"stream_value": torch.zeros(3, 2, 2, 1, 4)},
    "prefix_value must have the dtype of query, torch.float32, found torch.float64": {
        "prefix_value": torch.zeros(3, 2, 5, 4, dtype=torch.float64)
    },
    "stream_key must be on the device of query, cpu, found meta": {
        "stream_key": torch.zeros(3, 2, 2, 3, 4, device="meta")
    },
    "prefix_lengths must be a torch.Tensor, found list": {"prefix_lengths": [1, 2, 3]},
    "prefix_lengths must have dtype torch.int32 or torch.int64, found torch.float32": {
        "prefix_lengths": torch.zeros(3)
    },
    r"prefix_lengths must have shape \[B=3\] or \[B=3, M=2\], found \[2\]": {
        "prefix_lengths": torch.zeros(2, dtype=torch.int64)
    },
    r"prefix_lengths must have shape \[B=3\] or \[B=3, M=2\], found \[3, 5\]": {
        "prefix_lengths": torch.zeros(3, 5, dtype=torch.int64)
    },
    r"prefix_lengths must have shape \[B=3\] or \[B=3, M=2\], found \[3, 2, 1\]": {
        "prefix_lengths": torch.zeros(3, 2, 1, dtype=torch.int64)
    },
    r"prefix_lengths must be in \[0, P\] \(P=5\), found 6 at position \[2, 1\]": {
        "prefix_lengths": torch.tensor([[5, 5], [0, 1], [3, 6]])
    },
    r"prefix_lengths must be in \[0, P\] \(P=5\), found 6 at position \[1\]": {
        "prefix_lengths": torch.tensor([5, 6, 0])
    },
    r"prefix_lengths must be in \[0, P\] \(P=5\), found -1 at position \[2\]": {
        "prefix_lengths": torch.tensor([5, 0, -1], dtype=torch.int32)
    },
    "prefix_lengths must be on the device of query, cpu, found meta": {
        "prefix_lengths": torch.zeros(3, dtype=torch.int64, device="meta")
    },
    "scale must be finite, found nan": {"scale": math.nan},
    "scale must be a number, found str": {"scale": "1"},
    r"dropout_p must be in \[0, 1\), found 1.0": {"dropout_p": 1.0, "seed": 1},
    r"dropout_p must be in \[0, 1\), found -0.1": {"dropout_p": -0.1, "seed": 1},
    "dropout_p must be a number, found NoneType": {"dropout_p": None},
    "seed must be an int or an int64 tensor .* when dropout_p > 0, found None": {"dropout_p": 0.5},
    "seed must be an int or an int64 tensor .* found float": {"dropout_p": 0.5, "seed": 1.5},
    r"seed must be an int or an int64 tensor .* found torch.int32 \[\]": {
        "dropout_p": 0.5,
        "seed": torch.tensor(1, dtype=torch.int32),
    },
    r"seed must be an int or an int64 tensor .* found torch.int64 \[1\]": {"dropout_p": 0.5, "seed": torch.tensor([1])},
    "seed must be on the device of query, cpu, found meta": {
        "dropout_p": 0.5,
        "seed": torch.zeros((), dtype=torch.int64, device="meta"),
    },
    "seed must fit into 64 bits": {"dropout_p": 0.5, "seed": 2**63},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments(message):
    case = make_case(STREAM_ATTENTION, SIZES)
    with pytest.raises((TypeError, ValueError), match=message):
        stream_attention(**{**case.tensors, **case.options, **WRONG_ARGUMENTS[message]})


def test_no_dimension():
    empty = torch.zeros(1, 1, 1, 0)
    with pytest.raises(ValueError, match="query must have at least one entry along D, found D=0"):
        stream_attention(empty, empty, empty, torch.zeros(1, 1, 1, 1, 0), torch.zeros(1, 1, 1, 1, 0))


def test_compiled_graph_checks_lengths():
    """No host reads in a graph: the assertion is part of it."""
    case = make_case(STREAM_ATTENTION, SIZES)
    compiled = torch.compile(stream_attention, fullgraph=True, backend="aot_eager")
    compiled(**case.tensors, prefix_lengths=torch.tensor([0, 5, 2]))
    with pytest.raises(RuntimeError, match=r"prefix_lengths must be in \[0, P\]"):
        compiled(**case.tensors, prefix_lengths=torch.tensor([0, 6, 2]))
