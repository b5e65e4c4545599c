"""The losses where rounding hurts most: near one-hot distributions, equal states, equal columns, low temperatures.

The rule is that of test_parity.py. Logits differ by at most some 20: beyond, what is left of a gradient is below the
rounding of the float64 truth.
"""

from __future__ import annotations

import pytest
import torch

from plr_kernels import use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from tests.plr_kernels.harness import (
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
    INFO_NCE,
    LINEAR_CROSS_ENTROPY,
    PAIRWISE_KL,
    Case,
    assert_accurate,
    evaluate,
    implemented,
    make_case,
)

DIVERGENCE = {"batch": 2, "group": 3, "vocabulary": 7, "dim": 5, "temperature": 1.0, "detach_reference": False}
ENTROPY = {"rows": 5, "vocabulary": 7, "dim": 5, "temperature": 1.0, "ignored": 0.0, "reduction": "mean"}
CONSISTENT = {
    "histories": 5, "streams": 2, "vocabulary": 7, "dim": 5, "temperature": 1.0, "weights": 1.0, "ignored": 0.0,
    "weight": 1.0,
}  # fmt: skip
CONTRAST = {"groups": 2, "batch": 3, "dim": 3, "temperature": 1.0}


def _one_hot(states, spread):
    """The identity as items: a state's logits are its columns, the second of them far above the rest."""
    logits = torch.randn(states.shape, generator=torch.Generator().manual_seed(3)) * 2
    logits[..., 1] += spread
    return logits


def _same_argmax(spread):
    def change(tensors):
        return {"states": _one_hot(tensors["states"], spread), "items": torch.eye(5)}

    return change


def _different_argmaxes(spread):
    def change(tensors):
        states = _one_hot(tensors["states"], spread)
        states[:, 1] = states[:, 1].roll(1, -1)
        return {"states": states, "items": torch.eye(5)}

    return change


def _far_below_zero(tensors):
    """Logits of some −200: without its maximum a row's exponentials vanish, and 2 to minus the maximum is infinite."""
    return {"states": 0.1 * tensors["states"] - 6, "items": 0.1 * tensors["items"] + 7}


def _every_target_wins(tensors):
    return {"states": 20 * torch.eye(5), "items": torch.eye(5) + 0.01 * tensors["items"]}


def _every_target_wins_twice(tensors):
    states = (20 * torch.eye(5))[:, None, None] + 0.1 * tensors["states"]
    return {"states": states, "items": torch.eye(5) + 0.01 * tensors["items"]}


def _equal_states(tensors):
    return {"states": tensors["states"][:, :1].expand_as(tensors["states"]).contiguous(), "items": tensors["items"]}


def _equal_columns(tensors):
    return {"states": tensors["states"], "items": tensors["items"][:, :1].expand_as(tensors["items"])}


def _with_log_weights(change):
    return lambda tensors: tensors | change(tensors)


def _times(factor):
    def change(tensors):
        return {name: tensor * factor for name, tensor in tensors.items()}

    return change


def _equal_views(tensors):
    return {name: tensors["view1"].clone() for name in tensors}


def _below_the_floor(tensors):
    """One vector shorter than what counts as a norm: it is scaled, and not to length 1."""
    view1 = tensors["view1"].clone()
    view1[:, 0] *= 1e-9
    return {"view1": view1, "view2": tensors["view2"]}


def _as_drawn(tensors):
    return tensors


IDENTITY = {"vocabulary": 5}
CASES = {
    "divergence, one argmax": (PAIRWISE_KL, DIVERGENCE | IDENTITY, _same_argmax(10.0)),
    "divergence, one argmax, nearer": (PAIRWISE_KL, DIVERGENCE | IDENTITY, _same_argmax(16.0)),
    "divergence, one argmax of four": (PAIRWISE_KL, DIVERGENCE | IDENTITY | {"group": 4}, _same_argmax(14.0)),
    "divergence, several argmaxes": (PAIRWISE_KL, DIVERGENCE | IDENTITY, _different_argmaxes(14.0)),
    "divergence, several argmaxes, detached": (
        PAIRWISE_KL,
        DIVERGENCE | IDENTITY | {"detach_reference": True},
        _different_argmaxes(14.0),
    ),
    "divergence, several argmaxes, detached, nearer": (
        PAIRWISE_KL,
        DIVERGENCE | IDENTITY | {"detach_reference": True},
        _different_argmaxes(22.0),
    ),
    "divergence, all logits far below 0": (PAIRWISE_KL, DIVERGENCE, _far_below_zero),
    "divergence, two equal states": (PAIRWISE_KL, DIVERGENCE | {"group": 2}, _equal_states),
    "divergence, five equal states, small": (PAIRWISE_KL, DIVERGENCE | {"group": 5, "vocabulary": 3}, _equal_states),
    "divergence, seven equal states, small": (
        PAIRWISE_KL,
        DIVERGENCE | {"group": 7, "vocabulary": 40, "dim": 17},
        lambda tensors: _times(0.1)(_equal_states(tensors)),
    ),
    "divergence, seven near states": (PAIRWISE_KL, DIVERGENCE | {"group": 7, "vocabulary": 40}, _times(0.01)),
    "divergence, low temperature": (PAIRWISE_KL, DIVERGENCE | {"temperature": 0.05}, _times(0.5)),
    "divergence, equal columns": (PAIRWISE_KL, DIVERGENCE, _equal_columns),
    "divergence, one item": (PAIRWISE_KL, DIVERGENCE | {"vocabulary": 1}, _times(3)),
    "cross-entropy, every target wins": (LINEAR_CROSS_ENTROPY, ENTROPY | IDENTITY, _every_target_wins),
    "cross-entropy, all logits far below 0": (LINEAR_CROSS_ENTROPY, ENTROPY, _far_below_zero),
    "cross-entropy, one item": (LINEAR_CROSS_ENTROPY, ENTROPY | {"vocabulary": 1}, _times(3)),
    "cross-entropy, equal columns": (LINEAR_CROSS_ENTROPY, ENTROPY | {"temperature": 0.3}, _equal_columns),
    "cross-entropy, large": (LINEAR_CROSS_ENTROPY, ENTROPY | {"temperature": 0.3, "vocabulary": 40}, _times(10)),
    "cross-entropy, large, equal columns": (
        LINEAR_CROSS_ENTROPY,
        ENTROPY | {"temperature": 0.3, "dim": 50},
        lambda tensors: _times(10)(_equal_columns(tensors)),
    ),
    "consistent, one argmax": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | IDENTITY,
        _with_log_weights(_same_argmax(10.0)),
    ),
    "consistent, one argmax, nearer": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | IDENTITY | {"streams": 1},
        _with_log_weights(_same_argmax(16.0)),
    ),
    "consistent, several argmaxes": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | IDENTITY,
        _with_log_weights(_different_argmaxes(14.0)),
    ),
    "consistent, every target wins": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | IDENTITY,
        _with_log_weights(_every_target_wins_twice),
    ),
    "consistent, every target wins, weakly drawn together": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | IDENTITY | {"weight": 1e-4},
        _with_log_weights(_every_target_wins_twice),
    ),
    "consistent, all logits far below 0": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT,
        _with_log_weights(_far_below_zero),
    ),
    "consistent, two equal views": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT,
        _with_log_weights(_equal_states),
    ),
    "consistent, low temperature": (
        CONSISTENT_MIXTURE_CROSS_ENTROPY,
        CONSISTENT | {"temperature": 0.05},
        lambda tensors: _times(0.5)(tensors) | {"log_weights": tensors["log_weights"]},
    ),
    "consistent, equal columns": (CONSISTENT_MIXTURE_CROSS_ENTROPY, CONSISTENT, _with_log_weights(_equal_columns)),
    "consistent, one item": (CONSISTENT_MIXTURE_CROSS_ENTROPY, CONSISTENT | {"vocabulary": 1}, _as_drawn),
    "contrast, one dimension": (INFO_NCE, CONTRAST | {"batch": 2, "dim": 1}, _as_drawn),
    "contrast, one dimension, low temperature": (
        INFO_NCE,
        CONTRAST | {"batch": 2, "dim": 1, "temperature": 0.05},
        _as_drawn,
    ),
    "contrast, one row": (INFO_NCE, CONTRAST | {"batch": 1}, _as_drawn),
    "contrast, a vector below the floor of norms": (INFO_NCE, CONTRAST, _below_the_floor),
    "contrast, equal views": (INFO_NCE, CONTRAST | {"temperature": 0.1}, _equal_views),
    "contrast, low temperature": (INFO_NCE, CONTRAST | {"temperature": 0.03, "dim": 16}, _as_drawn),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", dict.fromkeys(target for target, _ in implemented()), ids=str)
def test_as_accurate_as_the_plain_formula(target, name):
    operator, sizes, change = CASES[name]
    if target.backend not in operator.implementations:
        pytest.skip("this backend has no such operator")
    for seed in range(1 if TRITON_INTERPRETED else 3):  # the interpreter takes most of a second for each
        drawn = make_case(operator, sizes, generator_seed=seed)
        tensors = {key: tensor.to(target.device) for key, tensor in change(drawn.tensors).items()}
        options = {
            key: value.to(target.device) if isinstance(value, torch.Tensor) else value
            for key, value in drawn.options.items()
        }
        if "every target wins" in name:
            options["targets"] = torch.arange(5, device=target.device)
        case = Case(tensors, options)
        with use_backend(target.backend):
            assert_accurate(evaluate(operator.public, case), operator, case)


@pytest.mark.parametrize("weight", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("spread", [5.0, 14.0, 22.0])
@pytest.mark.parametrize("change", [_same_argmax, _different_argmaxes], ids=lambda change: change.__name__)
def test_gradient_of_both_losses_by_logits_sums_to_zero(change, spread, weight):
    """Likewise, of a state that one pass over its scores gives the gradients of two losses."""
    pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")
    drawn = make_case(CONSISTENT_MIXTURE_CROSS_ENTROPY, CONSISTENT | IDENTITY | {"weight": weight, "streams": 1})
    case = Case(_with_log_weights(change(spread))(drawn.tensors), drawn.options)
    with use_backend("cpp"):
        gradient = evaluate(CONSISTENT_MIXTURE_CROSS_ENTROPY.public, case, ["states"])["gradient of states"].double()
    assert (gradient.sum(-1).abs() <= 8 * torch.finfo(torch.float32).eps * gradient.abs().sum(-1)).all()


@pytest.mark.parametrize("spread", [5.0, 14.0, 22.0])
@pytest.mark.parametrize("change", [_same_argmax, _different_argmaxes], ids=lambda change: change.__name__)
@pytest.mark.parametrize("detach_reference", [False, True])
@pytest.mark.parametrize("target", [target for target, operator in implemented() if operator is PAIRWISE_KL], ids=str)
def test_gradient_by_logits_sums_to_zero(target, detach_reference, change, spread):
    """Adding a number to all logits changes nothing. The plain formula loses the entry of the largest logit.

    With the identity as items, the gradient of the states is that by the logits.
    """
    if target.backend == "reference":
        pytest.skip("the plain formula, which loses it")
    sizes = DIVERGENCE | IDENTITY | {"detach_reference": detach_reference}
    drawn = make_case(PAIRWISE_KL, sizes)
    tensors = {name: tensor.to(target.device) for name, tensor in change(spread)(drawn.tensors).items()}
    case = Case(tensors, drawn.options)
    with use_backend(target.backend):
        gradient = evaluate(PAIRWISE_KL.public, case, ["states"])["gradient of states"].double()
    assert (gradient.sum(-1).abs() <= 8 * torch.finfo(torch.float32).eps * gradient.abs().sum(-1)).all()
