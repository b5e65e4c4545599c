"""pairwise_kl against a loop over pairs and items, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from plr_kernels import pairwise_kl, use_backend
from tests.plr_kernels.harness import PAIRWISE_KL, evaluate, make_case, targets

SIZES = {"batch": 2, "group": 3, "vocabulary": 7, "dim": 4, "temperature": 0.8, "detach_reference": False}


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in PAIRWISE_KL.implementations:
        pytest.skip("this backend has no pairwise_kl")
    with use_backend(request.param.backend):
        yield request.param


def make(target, **sizes):
    return make_case(PAIRWISE_KL, {**SIZES, **sizes}, device=target.device)


def pair_by_pair(states, items, temperature):
    """Every divergence from its definition, in Python floats."""
    divergences = []
    for group in states.double().tolist():
        distributions = []
        for state in group:
            exponentials = [
                math.exp(sum(a * b for a, b in zip(state, item, strict=True)) / temperature)
                for item in items.double().tolist()
            ]
            distributions.append([value / sum(exponentials) for value in exponentials])
        for i, p in enumerate(distributions):
            for j, q in enumerate(distributions):
                if i != j:
                    divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize("sizes", [{}, {"group": 2, "batch": 1}, {"temperature": 2.0}, {"vocabulary": 1}], ids=str)
def test_equals_pair_by_pair(target, sizes):
    case = make(target, **sizes)
    expected = pair_by_pair(*case.tensors.values(), case.options["temperature"])
    assert pairwise_kl(**case.tensors, **case.options).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_detached_reference_has_the_gradients_of_a_constant_reference(target):
    """The gradient of KL(p_i || c_j) pair by pair, with a constant c_j, by finite differences in float64."""
    case = make(target, detach_reference=True)
    results = evaluate(pairwise_kl, case)
    states, items = (tensor.double().cpu() for tensor in case.tensors.values())
    frozen = (states @ items.T / SIZES["temperature"]).log_softmax(-1)

    def against_constants(states, items):
        log_p = (states @ items.T / SIZES["temperature"]).log_softmax(-1)
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        divergences = [(log_p[:, i].exp() * (log_p[:, i] - frozen[:, j])).sum(-1) for i, j in pairs]
        return torch.stack(divergences).mean()

    step = 1e-6
    for name, tensor in (("states", states), ("items", items)):
        for position in range(0, tensor.numel(), 3):
            shifted = []
            for sign in (1, -1):
                copy = tensor.clone()
                copy.view(-1)[position] += sign * step
                shifted.append(against_constants(*((copy, items) if name == "states" else (states, copy))))
            expected = (shifted[0] - shifted[1]) / (2 * step)
            gradient = results[f"gradient of {name}"].flatten()[position].double().cpu()
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(results["output"], pairwise_kl(**case.tensors, temperature=SIZES["temperature"]))


@pytest.mark.parametrize("detach_reference", [False, True])
@pytest.mark.parametrize("sizes", [{"group": 1}, {"batch": 0}, {"group": 1, "batch": 0}], ids=str)
def test_no_pairs_give_zero(target, sizes, detach_reference):
    for name, result in evaluate(pairwise_kl, make(target, detach_reference=detach_reference, **sizes)).items():
        assert not result.any(), name  # NaN counts as any
        assert result.shape or name == "output"


def test_equal_states_have_no_divergence(target):
    case = make(target)
    case.tensors["states"][:] = case.tensors["states"][:, :1]
    assert abs(pairwise_kl(**case.tensors).item()) < 1e-6


def test_permuting_states_or_items_changes_nothing(target):
    case = make(target)
    states, items = case.tensors.values()
    expected = pairwise_kl(states, items)
    torch.testing.assert_close(pairwise_kl(states.flip(1), items.flip(0)), expected)
    torch.testing.assert_close(pairwise_kl(states / 2, items, temperature=0.5), expected)


WRONG_ARGUMENTS = {
    "states must be a torch.Tensor, found int": {"states": 1},
    "items must have the dtype of states, torch.float32, found torch.bfloat16": {
        "items": torch.zeros(7, 4, dtype=torch.bfloat16)
    },
    "items must be on the device of states, cpu, found meta": {"items": torch.zeros(7, 4, device="meta")},
    "states must have one of the dtypes .* found torch.int32": {"states": torch.zeros(2, 3, 4, dtype=torch.int32)},
    r"states must have shape \[B, N, D\], found \[3, 4\]": {"states": torch.zeros(3, 4)},
    r"items must have shape \[V, D=4\], found \[7, 5\]": {"items": torch.zeros(7, 5)},
    "states must have at least one entry along N, found N=0": {"states": torch.zeros(2, 0, 4)},
    "items must have at least one entry along V, found V=0": {"items": torch.zeros(0, 4)},
    "temperature must be above 0, found 0": {"temperature": 0},
    "temperature must be above 0, found -1.0": {"temperature": -1.0},
    "temperature must be finite, found inf": {"temperature": math.inf},
    "temperature must be finite, found nan": {"temperature": math.nan},
    "temperature must be a number, found Tensor": {"temperature": torch.tensor(1.0)},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments(message):
    case = make_case(PAIRWISE_KL, SIZES)
    with pytest.raises((TypeError, ValueError), match=message):
        pairwise_kl(**{**case.tensors, **case.options, **WRONG_ARGUMENTS[message]})
