"""mixture_cross_entropy against a loop over rows, its gradient's formula, ignored rows, and its limits."""

import math

import pytest
import torch

from plr_kernels import linear_cross_entropy, mixture_cross_entropy, use_backend
from tests.plr_kernels.harness import MIXTURE_CROSS_ENTROPY, evaluate, make_case, targets

REDUCTIONS = ["mean", "sum", "none"]


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in MIXTURE_CROSS_ENTROPY.implementations:
        pytest.skip("this backend has no mixture_cross_entropy")
    with use_backend(request.param.backend):
        yield request.param


def make(target, **sizes):
    sizes = {**MIXTURE_CROSS_ENTROPY.small, "rows": 6, "ignored": 0.4, "reduction": "none", **sizes}
    return make_case(MIXTURE_CROSS_ENTROPY, sizes, device=target.device)


def row_by_row(states, log_weights, items, targets, temperature):
    losses = []
    table = items.double().tolist()
    for streams, weights, wanted in zip(states.tolist(), log_weights.tolist(), targets.tolist(), strict=True):
        p = 0.0
        for state, weight in zip(streams, weights, strict=True):
            logits = [sum(a * b for a, b in zip(state, item, strict=True)) / temperature for item in table]
            p += math.exp(weight + logits[wanted]) / sum(map(math.exp, logits)) if wanted != -100 else 0.0
        losses.append(-math.log(p) if wanted != -100 else 0.0)
    return losses


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_row_by_row(target, reduction):
    case = make(target, reduction=reduction)
    losses = row_by_row(*case.tensors.values(), case.options["targets"], case.options["temperature"])
    counted = (case.options["targets"] != -100).sum().item()
    assert 0 < counted < len(losses)
    expected = {"mean": sum(losses) / counted, "sum": sum(losses), "none": losses}[reduction]
    output = mixture_cross_entropy(**case.tensors, **case.options)
    torch.testing.assert_close(output.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_each_stream_times_its_responsibility(target):
    """Of the logits r_m (p_m(v) − [v = y]), of the log-weights −r_m."""
    case = make(target, ignored=0.0)
    tensors = {name: tensor.requires_grad_() for name, tensor in case.tensors.items()}
    mixture_cross_entropy(**tensors, **case.options).sum().backward()
    states, log_weights, items = (tensor.detach().double() for tensor in tensors.values())
    temperature, wanted = case.options["temperature"], case.options["targets"]
    p = torch.softmax(states @ items.T / temperature, dim=2)  # [R, M, V]
    rows = torch.arange(len(wanted), device=wanted.device)
    joint = log_weights.exp() * p[rows, :, wanted]
    responsibility = joint / joint.sum(dim=1, keepdim=True)
    hit = torch.nn.functional.one_hot(wanted, items.shape[0])[:, None]
    by_logits = responsibility[:, :, None] * (p - hit) / temperature
    for name, expected in {
        "log_weights": -responsibility,
        "states": by_logits @ items,
        "items": torch.einsum("rmv,rmd->vd", by_logits, states),
    }.items():
        torch.testing.assert_close(tensors[name].grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_stream_is_linear_cross_entropy(target):
    case = make(target, streams=1, weights=0.0)
    expected = linear_cross_entropy(case.tensors["states"][:, 0], case.tensors["items"], **case.options)
    torch.testing.assert_close(mixture_cross_entropy(**case.tensors, **case.options), expected)


def test_below_the_mean_of_the_streams_losses(target):
    """Jensen's inequality (PLR, arXiv 2601.03153, Theorem 4.1), strict where streams disagree."""
    case = make(target, ignored=0.0)
    mixed = mixture_cross_entropy(**case.tensors, **case.options)
    of_streams = torch.stack(
        [
            linear_cross_entropy(stream.contiguous(), case.tensors["items"], **case.options)
            for stream in case.tensors["states"].unbind(1)
        ],
        dim=1,
    )
    mean = (case.tensors["log_weights"].exp() * of_streams).sum(dim=1)
    assert (mixed < mean - 1e-4).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf, 1e30])
def test_not_even_non_finite_ignored_rows_count(target, reduction, content):
    case = make(target, reduction=reduction)
    expected = evaluate(mixture_cross_entropy, case)
    ignored = case.options["targets"] == -100
    assert not expected["gradient of states"][ignored].any()
    case.tensors["states"][ignored] = content
    case.tensors["log_weights"][ignored] = content
    for name, result in evaluate(mixture_cross_entropy, case).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", [{"rows": 0}, {"ignored": 1.1}], ids=str)
def test_no_row_counted_gives_zero(target, sizes, reduction):
    for name, result in evaluate(mixture_cross_entropy, make(target, reduction=reduction, **sizes)).items():
        assert not result.any(), name


def test_a_stream_of_weight_zero_takes_no_part(target):
    case = make(target, ignored=0.0)
    case.tensors["log_weights"][:, 1] = -math.inf
    results = evaluate(mixture_cross_entropy, case)
    assert all(result.isfinite().all() for result in results.values())
    assert not results["gradient of states"][:, 1].any()
    for name in ("states", "log_weights"):
        case.tensors[name] = case.tensors[name][:, ::2]
    torch.testing.assert_close(mixture_cross_entropy(**case.tensors, **case.options), results["output"])


def test_losses_beyond_the_range_of_probabilities(target):
    """A target whose probability is far below the smallest float32: the loss is a difference of logits all the same."""
    states = torch.tensor([[[400.0], [300.0]]], device=target.device)
    items = torch.tensor([[1.0], [-1.0]], device=target.device)
    log_weights = torch.full((1, 2), math.log(0.5), device=target.device)
    loss = mixture_cross_entropy(states, log_weights, items, torch.tensor([1], device=target.device))
    assert loss.item() == pytest.approx(600 + math.log(2), rel=1e-6)


WRONG = {
    "states must have shape [R, M, D], found [4, 3]": {"states": torch.zeros(4, 3)},
    "log_weights must have shape [R=4, M=3], found [4, 2]": {"log_weights": torch.zeros(4, 2)},
    "states must have at least one entry along M, found M=0": {
        "states": torch.zeros(4, 0, 3),
        "log_weights": torch.zeros(4, 0),
    },
    "items must have shape [V, D=3], found [5, 2]": {"items": torch.zeros(5, 2)},
    "log_weights must have the dtype of states, torch.float32, found torch.bfloat16": {
        "log_weights": torch.zeros(4, 3, dtype=torch.bfloat16)
    },
    "targets must be in [0, V) or ignore_index (V=5, ignore_index=-100), found 5 at position [2]": {
        "targets": torch.tensor([0, 1, 5, 2])
    },
    "temperature must be above 0, found 0": {"temperature": 0},
    "reduction must be 'mean', 'sum' or 'none', found 'max'": {"reduction": "max"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    arguments = {
        "states": torch.zeros(4, 3, 3),
        "log_weights": torch.zeros(4, 3),
        "items": torch.zeros(5, 3),
        "targets": torch.zeros(4, dtype=torch.int64),
    } | WRONG[message]
    with pytest.raises((TypeError, ValueError)) as error:
        mixture_cross_entropy(**arguments)
    assert str(error.value) == message
