"""The C++ backend's products of float32 numbers: exact, unless torch is told that CPUs may round them to bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension, info_nce, linear_cross_entropy, top_items
from plr_kernels.dispatch import workspace
from tests.plr_kernels.cpu.test_cpp import BFLOAT16_SETS, INSTRUCTION_SETS
from tests.plr_kernels.harness import (
    INFO_NCE,
    LINEAR_CROSS_ENTROPY,
    PAIRWISE_KL,
    STREAM_ATTENTION,
    assert_accurate,
    cast,
    evaluate,
    make_case,
    normal,
)

pytestmark = pytest.mark.usefixtures("on_cpp")

# What rounding to bfloat16 may change of a number, relatively: it has 8 bits.
UNIT = 2.0**-8

needs_bfloat16 = pytest.mark.usefixtures("_with_bfloat16_products")

# The smallest sizes of which the products are rounded.
SIZES = {
    "pairwise_kl": {"vocabulary": 1024, "dim": 32},
    "linear_cross_entropy": {"vocabulary": 1024, "dim": 32},
    "info_nce": {"groups": 2, "batch": 1024, "dim": 32},
    "stream_attention": {},
}
LARGE_PRODUCTS = (PAIRWISE_KL, LINEAR_CROSS_ENTROPY, INFO_NCE)

for_large_products = pytest.mark.parametrize("operator", LARGE_PRODUCTS, ids=str)
for_every_operator = pytest.mark.parametrize("operator", [*LARGE_PRODUCTS, STREAM_ATTENTION], ids=str)


@pytest.fixture(params=BFLOAT16_SETS)
def _with_bfloat16_products(request, monkeypatch):
    """Whatever instruction set the environment chooses for this process; skipped on a CPU without such products."""
    monkeypatch.setattr(extension, "_instruction_set", request.param)


@pytest.fixture(autouse=True)
def _setting_restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def cases(operator, dtype=torch.float32, **sizes):
    sizes = operator.large | SIZES[operator.name] | sizes
    yield make_case(operator, sizes, dtype=dtype)
    if operator is INFO_NCE:  # then each row has a maximum of its own
        yield make_case(operator, sizes | {"temperature": 0.02}, dtype=dtype)


def at(precision, operator, case):
    torch.set_float32_matmul_precision(precision)
    return evaluate(operator.public, case)


def same(results, expected):
    return {name: torch.equal(result, expected[name]) for name, result in results.items()}


# ------------------------------------------------------------------------------------------ when


@for_every_operator
def test_nothing_is_rounded_unasked(operator):
    assert not extension.rounds_float32()
    for case in cases(operator):
        expected = evaluate(operator.public, case)
        assert_accurate(expected, operator, case)
        for precision in ("highest", "high"):
            assert all(same(at(precision, operator, case), expected).values()), precision


@for_every_operator
@pytest.mark.parametrize("instruction_set", [name for name in INSTRUCTION_SETS if name not in BFLOAT16_SETS])
def test_nothing_is_rounded_where_that_is_not_faster(monkeypatch, instruction_set, operator):
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    for case in cases(operator):
        assert all(same(at("medium", operator, case), at("highest", operator, case)).values())


@pytest.mark.parametrize(
    ("operator", "smaller"),
    [
        (STREAM_ATTENTION, {}),
        *((operator, {"dim": 31}) for operator in LARGE_PRODUCTS),
        (PAIRWISE_KL, {"vocabulary": 1023}),
        (LINEAR_CROSS_ENTROPY, {"vocabulary": 1023}),
        (INFO_NCE, {"batch": 1023}),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_small_products_are_never_rounded(operator, smaller):
    for case in cases(operator, **smaller):
        assert all(same(at("medium", operator, case), at("highest", operator, case)).values())


@for_large_products
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_does_not_depend_on_the_setting(operator, dtype):
    for case in cases(operator, dtype):
        assert all(same(at("medium", operator, case), at("highest", operator, case)).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_unit_vectors_of_half_precision_views_are_not_rounded(dtype):
    for case in cases(INFO_NCE, dtype):
        exact = evaluate(info_nce, cast(case, torch.float32))
        for name, result in evaluate(info_nce, case).items():
            assert torch.equal(result, exact[name].to(result.dtype)), name


@needs_bfloat16
@for_large_products
def test_both_ways_of_setting_it(operator):
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("PyTorch 2.9 has the second")
    case = next(cases(operator))
    exact, rounded = at("highest", operator, case), at("medium", operator, case)
    assert not any(same(rounded, exact).values())
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert all(same(evaluate(operator.public, case), exact).values())
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert all(same(evaluate(operator.public, case), rounded).values())


@needs_bfloat16
@for_large_products
def test_the_setting_is_read_in_each_pass(operator, monkeypatch):
    monkeypatch.setattr(workspace, "_megabytes", 0)  # two passes, not one
    case = next(cases(operator))
    exact = at("highest", operator, case)
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    output = operator.public(*leaves, **case.options)
    assert torch.equal(output, exact["output"])
    torch.set_float32_matmul_precision("medium")
    results = torch.autograd.grad(output, leaves, torch.ones_like(output))
    torch.set_float32_matmul_precision("highest")
    output = operator.public(*leaves, **case.options)
    expected = torch.autograd.grad(output, leaves, torch.ones_like(output))
    assert not any(map(torch.equal, results, expected))


# ------------------------------------------------------------------------------------------ what


@needs_bfloat16
@pytest.mark.parametrize("dim", [32, 33, 300])
@pytest.mark.parametrize("operator", [PAIRWISE_KL, LINEAR_CROSS_ENTROPY], ids=str)
def test_the_operands_are_rounded_and_nothing_else(operator, dim):
    """The bits are those of the inputs in bfloat16, for which the parity tests stand; results stay float32."""
    for case in cases(operator, dim=dim, vocabulary=1027):
        rounded = at("medium", operator, case)
        for name, expected in at("highest", operator, cast(case, torch.bfloat16)).items():
            assert rounded[name].dtype == torch.float32
            assert torch.equal(rounded[name].to(expected.dtype), expected), name
            assert not torch.equal(rounded[name].to(torch.bfloat16).float(), rounded[name]), name


@needs_bfloat16
@pytest.mark.parametrize("dim", [32, 100])
def test_cross_entropies_are_as_far_off_as_rounding_explains(dim):
    """The bounds follow from the units of rounding alone; the truth is that of the float32 inputs."""
    rows, vocabulary = 40, 1030
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, rows, dim).float() / 4, normal(generator, vocabulary, dim).float() / 4
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    torch.set_float32_matmul_precision("medium")
    leaves = [states.requires_grad_(), items.requires_grad_()]
    losses = linear_cross_entropy(*leaves, targets, reduction="none")
    gradients = torch.autograd.grad(losses.sum(), leaves)

    x, y = states.detach().double(), items.detach().double()
    logits = x @ y.T
    truth = logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]
    by_logit = logits.softmax(1) - torch.nn.functional.one_hot(targets, vocabulary)  # [R, V]
    # Sums in float32: of the products, and of the exponentials.
    summed = (dim + vocabulary) * torch.finfo(torch.float32).eps
    # Both factors of a product are off by a unit; a logarithm of probability by at most twice what the logits are off
    # by, and so is, relatively, a probability or one minus it.
    off = ((1 + UNIT) ** 2 - 1 + summed) * (x.abs() @ y.abs().T).amax(1)  # [R]
    assert ((losses.detach() - truth).abs() <= 2 * off + summed * truth).all()
    # That is a factor of the gradient's products, as is the rounding of both.
    relative = (2 * off).exp() * (1 + UNIT) ** 2 * (1 + summed) - 1
    terms = relative[:, None] * by_logit.abs()
    assert ((gradients[0] - by_logit @ y).abs() <= terms @ y.abs()).all()
    assert ((gradients[1] - by_logit.T @ x).abs() <= terms.T @ x.abs()).all()


@needs_bfloat16
@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("dim", [33, 64])
def test_unit_vectors_are_rounded_and_nothing_else(dim, temperature):
    """Of integers: a norm is the root of an exact sum, and the unit vectors here are the kernels' to the bit."""
    groups, batch = 2, 1025
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(-50, 51, (2, groups, batch, dim), generator=generator).float()
    views[1] += (views[0] / 3).round()  # no positive wins by so far that float64 would not do for the truth
    torch.set_float32_matmul_precision("medium")
    leaves = [view.requires_grad_() for view in views.clone()]
    loss = info_nce(*leaves, temperature=temperature)
    gradients = torch.autograd.grad(loss, leaves)

    units = [normalize(view, dim=-1) for view in views]
    rounded = [unit.bfloat16().double() for unit in units]
    similarities = rounded[0] @ rounded[1].transpose(1, 2) / temperature  # [G, B, B]
    log_p, log_q = similarities.log_softmax(2), similarities.log_softmax(1)
    positives = (log_p + log_q).diagonal(dim1=1, dim2=2)
    # As the harness counts the noise of float32 sums.
    noise = 4 * torch.finfo(torch.float32).eps * max(loss.item(), 1 / temperature)
    assert abs(loss.item() + positives.mean().item()) <= noise

    by_similarity = (log_p.exp() + log_q.exp() - 2 * torch.eye(batch)) / (groups * batch * temperature)
    for this, other, by_score in ((0, 1, by_similarity), (1, 0, by_similarity.transpose(1, 2))):
        norms = views[this].double().norm(dim=2, keepdim=True)
        unit = units[this].double()
        by_unit = by_score @ rounded[other]  # [G, B, D]
        truth = (by_unit - (by_unit * unit).sum(2, keepdim=True) * unit) / norms
        # The gradient by a similarity is a sum in float32, and is rounded to bfloat16 once more.
        summed = (dim * 2 / temperature + batch) * torch.finfo(torch.float32).eps
        off = (UNIT + 4 * summed) * by_score.abs() @ rounded[other].abs()
        off = (off + (off * unit.abs()).sum(2, keepdim=True) * unit.abs()) / norms
        assert ((gradients[this] - truth).abs() <= off).all()


# ------------------------------------------------------------------------------------------ top_items


def ranked(precision, states, items):
    torch.set_float32_matmul_precision(precision)
    scores, ids = top_items(states, items, 20)
    return torch.cat([scores.double(), ids.double()], dim=1)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dim", [32, 33, 300])
@pytest.mark.parametrize(("rows", "vocabulary"), [(17, 1024), (40, 1500), (1050, 1100)])
def test_ranking_many_rows(monkeypatch, instruction_set, rows, vocabulary, dim):
    """By scores of the rounded numbers, in all blocks of rows, or exactly."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, rows, dim).float(), normal(generator, vocabulary, dim).float()
    exact = ranked("highest", states, items)
    assert torch.equal(ranked("high", states, items), exact)
    if instruction_set in BFLOAT16_SETS:
        assert torch.equal(ranked("medium", states, items), ranked("highest", states.bfloat16(), items.bfloat16()))
        assert not torch.equal(ranked("medium", states, items), exact)
    else:
        assert torch.equal(ranked("medium", states, items), exact)


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dim"), [(1, 1100, 64), (8, 1100, 64), (16, 1100, 64), (40, 1023, 64), (40, 1100, 31)]
)
def test_ranking_few_rows_or_small_tables_is_exact(rows, vocabulary, dim):
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, rows, dim).float(), normal(generator, vocabulary, dim).float()
    assert torch.equal(ranked("medium", states, items), ranked("highest", states, items))
