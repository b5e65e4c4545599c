"""The "triton" backend as torch.library operators, and its limits: run under TRITON_INTERPRET=1, or on a GPU."""

from __future__ import annotations

import pytest
import torch

from plr_kernels import pairwise_kl, top_items, use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED, backend_module, runnable_backends
from plr_kernels.triton_shared import launch
from tests.plr_kernels.harness import (
    DTYPES,
    INFO_NCE,
    LINEAR_CROSS_ENTROPY,
    OPERATORS,
    PAIRWISE_KL,
    STREAM_ATTENTION,
    assert_accurate,
    evaluate,
    make_case,
    normal,
)
from tests.plr_kernels.operators.test_top_items import with_forbidden
from tests.plr_kernels.operators.test_top_mixture_items import assert_best, log_probabilities

pytestmark = pytest.mark.skipif("triton" not in runnable_backends(), reason="needs a GPU or TRITON_INTERPRET=1")
DEVICE = "cpu" if TRITON_INTERPRETED else "cuda"

ARGUMENTS = {
    "stream_attention": lambda case: (case.options["prefix_lengths"], case.options["seed"], 0.5, 0.3),
    "pairwise_kl": lambda case: (0.7, True),
    "info_nce": lambda case: (case.options["labels"], 0.7),
    "linear_cross_entropy": lambda case: (case.options["targets"], 0.7, -100),
    "candidate_cross_entropy": lambda case: (
        *(case.options[name] for name in ("targets", "candidates", "log_q", "kind", "positive_power")),
        0.7,
        -100,
    ),
}


# Mixtures have no ops of their own: they are made of those of the loss of one stream.
WITH_OPS = [operator for operator in OPERATORS if operator.name in ARGUMENTS]
WITH_TRITON = [operator for operator in OPERATORS if "triton" in operator.implementations]


@pytest.mark.parametrize("operator", WITH_OPS, ids=str)
def test_opcheck(operator):
    case = make_case(operator, operator.small | ({"labels": 1} if operator is INFO_NCE else {}), device=DEVICE)
    tensors = [tensor.requires_grad_() for tensor in case.tensors.values()]
    overload = getattr(torch.ops.plr_kernels, operator.name + "_forward").default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # test_compiles_into_one_graph compiles
    torch.library.opcheck(overload, (*tensors, *ARGUMENTS[operator.name](case), "triton"), test_utils=tests)


def test_opcheck_of_top_items():
    exclude = torch.tensor([[0, -1], [2, 3]], device=DEVICE)
    states, items = torch.randn(2, 3, device=DEVICE), torch.randn(7, 3, device=DEVICE)
    for where in ((), (torch.arange(7, device=DEVICE) > 2,)):
        arguments = (states, items, 3, exclude, "triton", *where)
        torch.library.opcheck(torch.ops.plr_kernels.top_items_forward.default, arguments)


def test_opcheck_of_operators_that_rank():
    exclude, wanted = torch.tensor([[0, -1], [2, 3]], device=DEVICE), torch.tensor([1, 6], device=DEVICE)
    streams, log_weights = torch.randn(2, 2, 3, device=DEVICE), torch.randn(2, 2, device=DEVICE)
    items = torch.randn(7, 3, device=DEVICE)
    ops = torch.ops.plr_kernels
    torch.library.opcheck(ops.target_rank_forward.default, (streams[:, 0], items, wanted, exclude, "triton"))
    mixture = (streams, log_weights, items)
    torch.library.opcheck(ops.target_mixture_rank_forward.default, (*mixture, wanted, 0.7, exclude, "triton"))
    for where in ((), (torch.arange(7, device=DEVICE) > 2,)):
        torch.library.opcheck(ops.top_mixture_items_forward.default, (*mixture, 3, 0.7, exclude, "triton", *where))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("temperature", "swept_twice"), [(0.02, 0), (100.0, 3)])
def test_a_mixture_takes_a_second_sweep_where_it_must(dtype, temperature, swept_twice):
    """Both find the best, copies in the order of their ids, excluded ones left out."""
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, 3, 4, 17).to(DEVICE, dtype), normal(generator, 300, 17).to(DEVICE, dtype)
    items[150:] = items[:150].clone()
    log_weights = torch.log_softmax(normal(generator, 3, 4), dim=1).to(DEVICE, dtype)
    exclude = top_items(states[:, 0].float().cpu(), items.float().cpu(), 4)[1].to(DEVICE)
    kernels = backend_module("top_mixture_items", "triton")
    truth = log_probabilities(states, log_weights, items, temperature)
    for where in (None, torch.rand(300, generator=generator).to(DEVICE) < 0.8):
        scores, ids, count = kernels.forward_counted(states, log_weights, items, 20, temperature, exclude, where)
        assert count.item() == swept_twice
        left_out = exclude if where is None else with_forbidden(exclude, where, 3)
        # A log-probability is a difference of logits below 60 / temperature, in float32.
        assert_best((scores, ids), truth, 20, left_out, 60 / temperature * 4 * torch.finfo(torch.float32).eps + 1e-5)


@pytest.mark.parametrize("operator", WITH_TRITON, ids=str)
def test_compiles_into_one_graph(operator):
    case = make_case(operator, operator.small, device=DEVICE)
    compiled = torch.compile(operator.public, fullgraph=True, dynamic=True, backend="aot_eager")
    with use_backend("triton"):
        assert_accurate(evaluate(compiled, case), operator, case)


LARGE = [
    (PAIRWISE_KL, {"batch": 3, "group": 33, "vocabulary": 150, "dim": 70, "temperature": 1.0}),
    (PAIRWISE_KL, {"batch": 70, "group": 3, "vocabulary": 200, "dim": 20, "temperature": 1.0}),
    (LINEAR_CROSS_ENTROPY, {"rows": 300, "vocabulary": 300, "dim": 20, "temperature": 1.0, "ignored": 0.1}),
    (INFO_NCE, {"groups": 2, "batch": 150, "dim": 70, "temperature": 0.2}),
    # More parts of a row than are put together at a time.
    (PAIRWISE_KL, {"batch": 3, "group": 3, "vocabulary": 500, "dim": 20, "temperature": 1.0}),
    (LINEAR_CROSS_ENTROPY, {"rows": 5, "vocabulary": 500, "dim": 20, "temperature": 1.0, "ignored": 0.1}),
    (INFO_NCE, {"groups": 1, "batch": 300, "dim": 7, "temperature": 0.2}),
    (STREAM_ATTENTION, {"batch": 1, "heads": 1, "streams": 9, "prefix": 70, "suffix": 1, "dim": 20}),
]
OPTIONS = {
    "pairwise_kl": {"detach_reference": True},
    "linear_cross_entropy": {"reduction": "mean"},
    "info_nce": {},
    "stream_attention": {"lengths": torch.int32, "scale": None, "dropout_p": 0.0},
}


@pytest.mark.parametrize(("operator", "sizes"), LARGE, ids=lambda value: getattr(value, "name", ""))
def test_several_blocks_along_every_dimension(operator, sizes):
    case = make_case(operator, {**sizes, **OPTIONS[operator.name]}, device=DEVICE)
    with use_backend("triton"):
        assert_accurate(evaluate(operator.public, case), operator, case)


@pytest.mark.parametrize("operator", [PAIRWISE_KL, LINEAR_CROSS_ENTROPY], ids=str)
def test_all_logits_far_below_zero(operator):
    """Scores of items that do not exist, which fill up a tile, are 0: far above those that do."""
    case = make_case(operator, operator.small, device=DEVICE)
    case.tensors["states"].abs_().add_(10)
    case.tensors["items"].abs_().add_(10).neg_()
    with use_backend("triton"):
        results = evaluate(operator.public, case)
    assert all(result.isfinite().all() for result in results.values())


def test_all_similarities_far_below_zero():
    case = make_case(INFO_NCE, {"groups": 2, "batch": 1, "dim": 3, "temperature": 0.004}, device=DEVICE)
    case.tensors["view2"] = -case.tensors["view1"]
    with use_backend("triton"):
        assert_accurate(evaluate(INFO_NCE.public, case), INFO_NCE, case)


def test_more_states_than_a_tile_holds():
    with use_backend("triton"), pytest.raises(ValueError, match=r"states must have at most N=128 .* found N=129"):
        pairwise_kl(torch.zeros(1, 129, 4, device=DEVICE), torch.zeros(5, 4, device=DEVICE))


def test_longer_lists_than_registers_hold():
    states, items = torch.randn(2, 3, device=DEVICE), torch.randn(200, 3, device=DEVICE)
    with use_backend("reference"):
        expected = top_items(states, items, 150)
    with use_backend("triton"):
        scores, ids = top_items(states, items, 150)
    assert torch.equal(ids, expected[1])
    assert torch.equal(scores, expected[0])
    where = torch.arange(200, device=DEVICE) % 2 > 0
    with use_backend("triton"):
        scores, ids = top_items(states, items, 150, where=where)
    assert torch.equal(ids[:, :100].sort(dim=1).values, where.nonzero()[:, 0].expand(2, -1))
    assert (ids[:, 100:] == -1).all()


@pytest.mark.parametrize(("loop_blocks", "owners"), [(1, 1), (7, 1), (1000, 1), (1000, 3), (5, 10**6)])
def test_split_covers_the_loop(loop_blocks, owners):
    per_part, parts = launch.split(loop_blocks, owners, 100)
    assert (parts - 1) * per_part < loop_blocks <= parts * per_part
