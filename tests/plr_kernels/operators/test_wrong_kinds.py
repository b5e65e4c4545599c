"""Arguments of a kind that would be taken for another: bools as numbers, words as bools, sparse tensors, huge ints."""

from __future__ import annotations

import pytest
import torch

from plr_kernels import top_items, top_mixture_items, use_backend
from plr_kernels.layers import (
    CandidateCrossEntropy,
    CandidateMixtureCrossEntropy,
    ConsistentMixtureCrossEntropy,
    InfoNCE,
    LinearCrossEntropy,
    PairwiseKL,
    StreamAttention,
)
from tests.plr_kernels.harness import OPERATORS, implemented, make_case

HUGE = 10**400
KIND_OF_OPTION = {
    "temperature": "a number",
    "weight": "a number",
    "scale": "a number",
    "positive_power": "a number",
    "dropout_p": "a number",
    "seed": "an int",
    "ignore_index": "an int",
    "detach_reference": "a bool",
    "sparse_gradient": "a bool",
}
# Options that a case need not have been made with.
DEFAULTS = {
    "stream_attention": ("scale", "seed"),
    "candidate_cross_entropy": ("ignore_index", "sparse_gradient"),
    "candidate_mixture_cross_entropy": ("ignore_index", "sparse_gradient"),
    "consistent_mixture_cross_entropy": ("ignore_index",),
    "linear_cross_entropy": ("ignore_index",),
    "mixture_cross_entropy": ("ignore_index",),
}


def options_of(operator):
    case = make_case(operator, operator.small)
    return sorted({*case.options, *DEFAULTS.get(operator.name, ())} & {*KIND_OF_OPTION})


OPTIONS = [(operator, name) for operator in OPERATORS for name in options_of(operator)]
NUMBERS = [(operator, name) for operator, name in OPTIONS if KIND_OF_OPTION[name] != "a bool"]


def case_of(operator):
    """A case in which every option has an effect."""
    return make_case(operator, operator.small | ({"dropout_p": 0.5} if "dropout_p" in operator.small else {}))


@pytest.mark.parametrize(("operator", "name"), OPTIONS, ids=str)
def test_options_of_another_kind(operator, name):
    case = case_of(operator)
    kind = KIND_OF_OPTION[name]
    wrong = "false" if kind == "a bool" else True
    with pytest.raises(TypeError, match=f"^{name} must be {kind}.*, found {type(wrong).__name__}"):
        operator.public(**case.tensors, **case.options | {name: wrong})


@pytest.mark.parametrize(("operator", "name"), NUMBERS, ids=str)
def test_ints_that_no_number_of_the_operators_holds(operator, name):
    case = case_of(operator)
    with pytest.raises(ValueError, match=f"^{name} must .*, found 1000"):
        operator.public(**case.tensors, **case.options | {name: HUGE})


@pytest.mark.parametrize(("target", "operator"), implemented(), ids=str)
def test_sparse_tensors(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    arguments = case.tensors | case.options
    for name, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor) and tensor.ndim:
            refused = pytest.raises(TypeError, match=f"^{name} must be a dense tensor, .* found torch.sparse_coo")
            with use_backend(target.backend), refused:
                operator.public(**arguments | {name: tensor.to_sparse()})


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(operator, layout):
    """Those of the older kind say that they are strided, and have no shape that could be looked at."""
    case = case_of(operator)
    for name, tensor in case.tensors.items():
        nested = torch.nested.nested_tensor([tensor[0], tensor[0]], layout=layout)
        with pytest.raises(TypeError, match=f"^{name} must be a dense tensor, .* found a nested one"):
            operator.public(**case.tensors | case.options | {name: nested})


def test_a_bool_as_the_length_of_a_list():
    with pytest.raises(TypeError, match="k must be an int, found bool"):
        top_items(torch.zeros(2, 3), torch.zeros(5, 3), True)
    with pytest.raises(TypeError, match="k must be an int, found bool"):
        top_mixture_items(torch.zeros(2, 1, 3), torch.zeros(2, 1), torch.zeros(5, 3), True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PairwiseKL(detach_reference="no"), "detach_reference must be a bool, found str 'no'"),
        (lambda: CandidateCrossEntropy(sparse_gradient=0), "sparse_gradient must be a bool, found int 0"),
        (lambda: CandidateMixtureCrossEntropy(sparse_gradient=0), "sparse_gradient must be a bool, found int 0"),
        (lambda: InfoNCE(temperature=True), "temperature must be a number, found bool"),
        (lambda: LinearCrossEntropy(ignore_index=2**63), "ignore_index must fit into 64 bits"),
        (lambda: ConsistentMixtureCrossEntropy(weight=1, ignore_index=-(2**64)), "ignore_index must fit into 64 bits"),
        (lambda: StreamAttention(scale=HUGE), "scale must be at most 1.79"),
    ],
)
def test_layers_refuse_them_at_once(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()
