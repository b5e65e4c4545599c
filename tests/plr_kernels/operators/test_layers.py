"""The layers hand their options to the functions, and StreamAttention draws its own seeds."""

from __future__ import annotations

import pytest
import torch

import plr_kernels
from plr_kernels import (
    CandidateCrossEntropy,
    CandidateMixtureCrossEntropy,
    ConsistentMixtureCrossEntropy,
    InfoNCE,
    LinearCrossEntropy,
    MixtureCrossEntropy,
    PairwiseKL,
    StreamAttention,
)
from tests.plr_kernels.harness import STREAM_ATTENTION, make_case


def test_losses_hand_on_their_options():
    states, items, targets = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([1, -1, 2, 6])
    groups = torch.randn(2, 4, 3)
    layer = LinearCrossEntropy(temperature=0.5, ignore_index=-1, reduction="sum")
    expected = plr_kernels.linear_cross_entropy(
        states, items, targets, temperature=0.5, ignore_index=-1, reduction="sum"
    )
    assert torch.equal(layer(states, items, targets), expected)
    streams, log_weights = torch.randn(4, 2, 3), torch.log_softmax(torch.randn(4, 2), dim=1)
    layer = MixtureCrossEntropy(temperature=0.5, ignore_index=-1, reduction="sum")
    expected = plr_kernels.mixture_cross_entropy(
        streams, log_weights, items, targets, temperature=0.5, ignore_index=-1, reduction="sum"
    )
    assert torch.equal(layer(streams, log_weights, items, targets), expected)
    views, both = torch.randn(4, 2, 2, 3), torch.log_softmax(torch.randn(4, 2, 2), dim=2)
    drawn = torch.tensor([1, 0, 0, 1])
    layer = ConsistentMixtureCrossEntropy(weight=0.3, temperature=0.5, ignore_index=-1)
    expected = plr_kernels.consistent_mixture_cross_entropy(
        views, both, items, targets, drawn, weight=0.3, temperature=0.5, ignore_index=-1
    )
    assert all(torch.equal(*pair) for pair in zip(layer(views, both, items, targets, drawn), expected, strict=True))
    listed = {"temperature": 0.5, "ignore_index": -1, "reduction": "sum"}
    candidates, log_q = torch.tensor([0, 3, 6]), torch.randn(3)
    layer = CandidateCrossEntropy(kind="bce", positive_power=0.3, **listed)
    expected = plr_kernels.candidate_cross_entropy(
        states, items, targets, candidates, log_q=log_q, kind="bce", positive_power=0.3, **listed
    )
    assert torch.equal(layer(states, items, targets, candidates, log_q), expected)
    layer = CandidateMixtureCrossEntropy(**listed)
    expected = plr_kernels.candidate_mixture_cross_entropy(
        streams, log_weights, items, targets, candidates, log_q=log_q, **listed
    )
    assert torch.equal(layer(streams, log_weights, items, targets, candidates, log_q), expected)
    assert torch.equal(
        InfoNCE(temperature=0.5)(groups, groups + 1), plr_kernels.info_nce(groups, groups + 1, temperature=0.5)
    )
    groups.requires_grad_()
    layer = PairwiseKL(temperature=0.5, detach_reference=True)
    expected = plr_kernels.pairwise_kl(groups, items, temperature=0.5, detach_reference=True)
    assert torch.equal(layer(groups, items), expected)
    gradients = [torch.autograd.grad(loss, groups)[0] for loss in (layer(groups, items), expected)]
    assert torch.equal(*gradients)


@pytest.fixture
def case():
    sizes = STREAM_ATTENTION.small | {"prefix": 9, "dropout_p": 0.0}
    case = make_case(STREAM_ATTENTION, sizes)
    case.options.pop("scale")
    case.options.pop("dropout_p")
    return case


def test_attention_drops_in_training_only(case):
    layer = StreamAttention(scale=0.7, dropout_p=0.5)
    plain = plr_kernels.stream_attention(**case.tensors, **case.options, scale=0.7)
    assert not torch.equal(layer(**case.tensors, **case.options), plain)
    assert torch.equal(layer.eval()(**case.tensors, **case.options), plain)
    assert torch.equal(StreamAttention(scale=0.7)(**case.tensors, **case.options), plain)


def test_attention_draws_a_new_seed_each_time_from_torchs_generator(case):
    layer = StreamAttention(dropout_p=0.5)
    torch.manual_seed(3)
    first, second = (layer(**case.tensors, **case.options) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(**case.tensors, **case.options), first)
    given = layer(**case.tensors, **case.options, seed=5)
    assert torch.equal(layer(**case.tensors, **case.options, seed=5), given)
    expected = plr_kernels.stream_attention(**case.tensors, **case.options, dropout_p=0.5, seed=5)
    assert torch.equal(given, expected)


def test_attention_with_drawn_seed_compiles(case):
    compiled = torch.compile(StreamAttention(dropout_p=0.5), fullgraph=True, backend="aot_eager")
    first, second = (compiled(**case.tensors, **case.options) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("layer", "representation"),
    [
        (StreamAttention(dropout_p=0.2), "StreamAttention(scale=None, dropout_p=0.2)"),
        (PairwiseKL(), "PairwiseKL(temperature=1.0, detach_reference=False)"),
        (InfoNCE(temperature=0.1), "InfoNCE(temperature=0.1)"),
        (
            CandidateCrossEntropy(kind="bce", positive_power=0.5),
            "CandidateCrossEntropy(kind='bce', positive_power=0.5, temperature=1.0, ignore_index=-100, "
            "reduction='mean', sparse_gradient=False)",
        ),
        (
            CandidateMixtureCrossEntropy(sparse_gradient=True),
            "CandidateMixtureCrossEntropy(temperature=1.0, ignore_index=-100, reduction='mean', sparse_gradient=True)",
        ),
        (
            ConsistentMixtureCrossEntropy(weight=0.5),
            "ConsistentMixtureCrossEntropy(weight=0.5, temperature=1.0, ignore_index=-100)",
        ),
        (LinearCrossEntropy(), "LinearCrossEntropy(temperature=1.0, ignore_index=-100, reduction='mean')"),
    ],
)
def test_representation_and_state(layer, representation):
    assert repr(layer) == representation
    assert not layer.state_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StreamAttention(dropout_p=1.0), r"dropout_p must be in \[0, 1\), found 1.0"),
        (lambda: StreamAttention(scale=float("inf")), "scale must be finite, found inf"),
        (lambda: PairwiseKL(temperature=0), "temperature must be above 0, found 0"),
        (lambda: InfoNCE(temperature=-1), "temperature must be above 0, found -1"),
        (lambda: ConsistentMixtureCrossEntropy(weight=float("nan")), "weight must be finite, found nan"),
        (lambda: LinearCrossEntropy(reduction="max"), "reduction must be 'mean', 'sum' or 'none', found 'max'"),
        (lambda: LinearCrossEntropy(ignore_index=None), "ignore_index must be an int, found NoneType"),
    ],
)
def test_wrong_options_are_refused_at_once(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()
