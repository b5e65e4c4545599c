"""NaN and infinite inputs: outputs and gradients are NaN and infinite where the reference's are, and nowhere else.

Training that diverges must be seen, in the rows that it has reached and in no others.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plr_kernels import stream_attention, use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from tests.plr_kernels.harness import (
    LINEAR_CROSS_ENTROPY,
    LOSSES,
    MIXTURE_CROSS_ENTROPY,
    STREAM_ATTENTION,
    Case,
    evaluate,
    make_case,
    targets,
)

fused = pytest.mark.parametrize("target", [each for each in targets() if each.backend != "reference"], ids=str)
infected = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)

ATTENTION = STREAM_ATTENTION.small | {"prefix": 5, "dim": 3, "dropout_p": 0.0}


def pattern(result: Tensor) -> Tensor:
    """0 for a finite entry, 2 for NaN, the sign of an infinite one."""
    return torch.where(result.isnan(), 2, result.isinf() * result.nan_to_num().sign())


def assert_same_pattern(target, operator, case: Case) -> None:
    with use_backend("reference"):
        expected = evaluate(operator.public, case)
    with use_backend(target.backend):
        results = evaluate(operator.public, case)
    for name, result in results.items():
        assert torch.equal(pattern(result), pattern(expected[name])), name


@fused
@infected
@pytest.mark.parametrize("lengths", [None, (2, 0), (5, 3)], ids=str)
@pytest.mark.parametrize("where", ["first", "middle", "rows"])
@pytest.mark.parametrize("name", ["query", "prefix_key", "prefix_value", "stream_key", "stream_value"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_stream_attention(target, dropout_p, name, where, lengths, value):
    if TRITON_INTERPRETED and (where != "first" or lengths != (2, 0) or value == -math.inf):
        pytest.skip("the interpreter takes a second for each")
    case = make_case(STREAM_ATTENTION, ATTENTION | {"dropout_p": dropout_p}, device=target.device, generator_seed=3)
    case.options.pop("prefix_lengths")
    if lengths is not None:
        case.options["prefix_lengths"] = torch.tensor(lengths, device=target.device)
    tensor = case.tensors[name]
    if where == "rows":
        tensor[0] = value * tensor[0].sign()  # some scores +inf, some -inf
    else:
        tensor.view(-1)[0 if where == "first" else tensor.numel() // 2] = value
    assert_same_pattern(target, STREAM_ATTENTION, case)


@pytest.mark.parametrize("target", targets(), ids=str)
@infected
def test_what_lies_beyond_a_length_reaches_nothing(target, value):
    """Keys and values there may hold anything; and a NaN query reaches no gradient there."""
    case = make_case(STREAM_ATTENTION, ATTENTION, device=target.device)
    case.options.update(prefix_lengths=torch.tensor([2, 0], device=target.device))
    with use_backend(target.backend):
        expected = evaluate(STREAM_ATTENTION.public, case)
        for name in ("prefix_key", "prefix_value"):
            case.tensors[name][0, :, 2:] = value
            case.tensors[name][1] = value
        results = evaluate(STREAM_ATTENTION.public, case)
        case.tensors["query"][0, 0, 0] = value
        reached = evaluate(STREAM_ATTENTION.public, case)
    for name, result in results.items():
        assert torch.equal(result, expected[name]), name
    for name in ("prefix_key", "prefix_value"):
        gradient = reached[f"gradient of {name}"]
        assert not gradient[0, :, 2:].any()
        assert not gradient[1].any()
    assert reached["output"][0, 0, 0].isnan().all()
    assert reached["output"].isnan().sum() == 3  # D


@pytest.mark.parametrize("target", targets(), ids=str)
def test_scores_of_minus_infinity(target):
    """Keys of such scores have no weight beside others; alone they are NaN, as in softmax, with padding or without."""
    query = torch.ones(1, 1, 1, 2, device=target.device)
    key = torch.full((1, 1, 40, 2), -math.inf, device=target.device)
    value = torch.arange(80.0, device=target.device).view(1, 1, 40, 2)
    stream_key, stream_value = torch.zeros(2, 1, 1, 1, 1, 2, device=target.device).unbind()
    stream_value = stream_value + 7
    none = stream_key[:, :, :, :0]
    with use_backend(target.backend):
        beside = stream_attention(query, key, value, stream_key, stream_value)
        assert torch.equal(beside, torch.full_like(query, 7))
        for lengths in (None, torch.tensor([30], device=target.device)):
            assert stream_attention(query, key, value, none, none, prefix_lengths=lengths).isnan().all()
        key[..., 39, :] = 0
        assert torch.equal(stream_attention(query, key, value, none, none), value[:, :, 39:])


# Where a row is ignored the reference multiplies zeros by an infinite item: it is for the rows that count.
COUNTED = {"ignored": 0.0}


@fused
@infected
@pytest.mark.parametrize("operator", LOSSES, ids=str)
def test_losses(target, operator, value):
    if target.backend not in operator.implementations:
        pytest.skip("this backend has no such operator")
    if TRITON_INTERPRETED and value == -math.inf:
        pytest.skip("the interpreter takes a second for each")
    sizes = operator.small | (COUNTED if "ignored" in operator.small and not math.isnan(value) else {})
    for name in make_case(operator, sizes).tensors:
        case = make_case(operator, sizes, device=target.device, generator_seed=3)
        case.tensors[name].view(-1)[case.tensors[name].numel() // 2] = value
        assert_same_pattern(target, operator, case)


# Which items have a score of which infinity, in every row of a table of 60; row r's target is item r.
INFINITE_SCORES = {
    "a target at the top": {1: math.inf},
    "no target at the top": {50: math.inf},
    "a target at the bottom": {1: -math.inf},
    "all but a target at the bottom": dict.fromkeys((0, *range(2, 60)), -math.inf),
    "all at the bottom": dict.fromkeys(range(60), -math.inf),
}


@fused
@pytest.mark.parametrize("operator", [LINEAR_CROSS_ENTROPY, MIXTURE_CROSS_ENTROPY], ids=str)
@pytest.mark.parametrize("scores", INFINITE_SCORES)
def test_infinite_scores(target, operator, scores):
    """A run that diverged has no loss of 0; and what is impossible does not count beside what is not."""
    sizes = operator.small | {"rows": 3, "vocabulary": 60, "dim": 2, "ignored": 0.0, "reduction": "none"}
    case = make_case(operator, sizes, device=target.device)
    case.tensors["states"].abs_().add_(0.1)
    case.options["targets"] = torch.arange(3, device=target.device)
    for item, score in INFINITE_SCORES[scores].items():
        case.tensors["items"][item, 0] = score
    assert_same_pattern(target, operator, case)
