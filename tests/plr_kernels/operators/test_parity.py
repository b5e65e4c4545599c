"""Every operator on every backend: accuracy, memory layouts, gradients, autocast, compilation."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from plr_kernels import use_backend
from tests.plr_kernels.harness import (
    DTYPES,
    EXAMPLES,
    LAYOUTS,
    OPERATORS,
    PAIRWISE_KL,
    STREAM_ATTENTION,
    assert_accurate,
    beyond_blocks,
    cast,
    evaluate,
    implemented,
    make_case,
)

on_every_target = pytest.mark.parametrize(
    ("target", "operator"), [pytest.param(t, o, id=f"{t}-{o}") for t, o in implemented()]
)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def output_dtype(operator, dtype):
    return dtype if operator.name == "stream_attention" else torch.float32


@pytest.fixture(autouse=True)
def _chosen_backend(request):
    if "target" not in request.fixturenames:
        yield
        return
    with use_backend(request.getfixturevalue("target").backend):
        yield


@on_every_target
@in_every_dtype
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_as_accurate_as_the_plain_formula(target, operator, dtype, data):
    sizes = data.draw(operator.sizes, "sizes")
    names = make_case(operator, sizes).tensors
    case = make_case(
        operator,
        sizes,
        dtype=dtype,
        device=target.device,
        generator_seed=data.draw(st.integers(0, 99), "generator_seed"),
        layouts={name: data.draw(st.sampled_from(LAYOUTS), name) for name in names},
    )
    results = evaluate(operator.public, case)
    assert results["output"].dtype == output_dtype(operator, dtype)
    assert all(results[f"gradient of {name}"].dtype == dtype for name in names)
    assert_accurate(results, operator, case)


@on_every_target
@in_every_dtype
def test_as_accurate_as_the_plain_formula_beyond_one_block(target, operator, dtype):
    case = make_case(operator, beyond_blocks(operator), dtype=dtype, device=target.device)
    assert_accurate(evaluate(operator.public, case), operator, case)


@on_every_target
def test_large_inputs_neither_overflow_nor_vanish(target, operator):
    """Logits in the hundreds: exp without the subtracted maximum would be infinite."""
    case = make_case(operator, operator.small, device=target.device)
    for tensor in case.tensors.values():
        tensor.mul_(20)
    assert_accurate(evaluate(operator.public, case), operator, case)


@on_every_target
def test_gradients_only_where_asked_and_always_the_same(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    full = evaluate(operator.public, case)
    names = list(case.tensors)
    for count in range(len(names) + 1):
        for wanted in itertools.combinations(names, count):
            leaves = {name: case.tensors[name].clone().requires_grad_(name in wanted) for name in names}
            output = operator.public(**leaves, **case.options)
            assert output.requires_grad == bool(wanted)
            torch.testing.assert_close(output.detach(), full["output"], rtol=0, atol=0)
            for name in set(names) - set(wanted):
                assert leaves[name].grad is None
            partial_results = evaluate(operator.public, case, wanted)
            for name, gradient in partial_results.items():
                torch.testing.assert_close(gradient, full[name], rtol=0, atol=0, msg=f"{name} for {wanted}")


class WithoutGradient(torch.autograd.Function):
    """The number as it is, with a backward pass that has nothing to say: in PyTorch None is a gradient of zero."""

    @staticmethod
    def forward(ctx, number):
        return number.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


@on_every_target
def test_a_gradient_that_later_functions_leave_out(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.tensors.items()}
    WithoutGradient.apply(operator.public(**leaves, **case.options)).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None or not leaf.grad.any(), name


@on_every_target
def test_several_gradients_at_once(target, operator):
    """As jacobian(vectorize=True) asks for: those that they are one after the other."""
    case = make_case(operator, operator.small, device=target.device)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.tensors.items()}
    output = operator.public(**leaves, **case.options)
    factors = torch.tensor([1.0, -0.5, 0.0], device=target.device)
    cotangents = factors.view(-1, *(1,) * output.ndim) * torch.ones_like(output)
    together = torch.autograd.grad(output, list(leaves.values()), cotangents, is_grads_batched=True, retain_graph=True)
    for place, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(output, list(leaves.values()), cotangent, retain_graph=True)
        for name, several, one in zip(leaves, together, alone, strict=True):
            torch.testing.assert_close(several[place], one, msg=name)
    if target.backend != "reference":
        again = torch.autograd.grad(output, list(leaves.values()), cotangents, is_grads_batched=True, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            torch.autograd.grad(again[0].sum(), list(leaves.values()))


@on_every_target
@in_every_dtype
def test_same_bits_every_time(target, operator, dtype):
    case = make_case(operator, operator.large, dtype=dtype, device=target.device)
    first, second = evaluate(operator.public, case), evaluate(operator.public, case)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@on_every_target
def test_inputs_are_left_alone(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    before = {name: tensor.clone() for name, tensor in case.tensors.items()}
    evaluate(operator.public, case)
    for name, tensor in before.items():
        assert torch.equal(case.tensors[name], tensor), name


@on_every_target
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs_and_nothing_else(target, operator, dtype):
    case = make_case(operator, operator.large, device=target.device)

    def under_autocast_forward(**arguments):
        with torch.autocast(target.device, dtype=dtype):
            return operator.public(**arguments)

    under_autocast = evaluate(under_autocast_forward, case)
    expected = evaluate(operator.public, cast(case, dtype))
    assert under_autocast["output"].dtype == output_dtype(operator, dtype)
    for name, result in under_autocast.items():
        if name != "output":
            assert result.dtype == torch.float32
        assert torch.equal(result, expected[name].to(result.dtype)), name


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_autocast_leaves_float64_alone(operator):
    case = make_case(operator, operator.small, dtype=torch.float64)
    with use_backend("reference"), torch.autocast("cpu", dtype=torch.bfloat16):
        output = operator.public(**case.tensors, **case.options)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, operator.formula(**case.tensors, **case.options), rtol=0, atol=0)


@on_every_target
def test_second_derivative_is_right_or_refused(target, operator):
    if target.backend == "reference":
        case = make_case(operator, operator.small, dtype=torch.float64, device=target.device)
        leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]

        def call(*tensors):
            return operator.public(**dict(zip(case.tensors, tensors, strict=True)), **case.options)

        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
        return
    case = make_case(operator, operator.small, device=target.device)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.tensors.items()}
    output = operator.public(**leaves, **case.options).sum()
    gradients = torch.autograd.grad(output, list(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match=r'differentiate twice .* use_backend\("reference"\)'):
        torch.autograd.grad(sum(g.square().sum() for g in gradients), list(leaves.values()))


# Of the formula of attention that of one length for all queries is the other one's, repeated for each.
TO_COMPILE = [
    pytest.param(t, o, id=f"{t}-{o}")
    for t, o in implemented()
    if not (t.backend == "reference" and o is STREAM_ATTENTION)
]


@pytest.mark.parametrize(("target", "operator"), TO_COMPILE)
def test_compiles_into_one_graph_for_all_shapes(target, operator):
    # The head dimension is a constant of the graph, since the scale of the attention follows from it. Without
    # dropout, whose random draws take long to trace; test_compiles_with_inductor has it.
    first = operator.large | ({"dropout_p": 0.0} if operator.name == "stream_attention" else {})
    second = {name: size + 2 if type(size) is int and name != "dim" else size for name, size in first.items()}
    compiled = torch.compile(operator.public, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sizes in (first, second):
            case = make_case(operator, sizes, device=target.device)
            assert_accurate(evaluate(compiled, case), operator, case)


def test_compiled_graph_follows_options_and_autocast():
    """What is chosen in Python is guarded on: a changed temperature or autocast state compiles anew, and right."""
    operator = PAIRWISE_KL
    case = make_case(operator, operator.small)
    compiled = torch.compile(operator.public, fullgraph=True, backend="aot_eager")
    for temperature in (1.0, 0.5, 0.25, 2.0):
        options = {**case.options, "temperature": temperature}
        expected = operator.public(**case.tensors, **options)
        torch.testing.assert_close(compiled(**case.tensors, **options), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = operator.public(**case.tensors, **options)
            torch.testing.assert_close(compiled(**case.tensors, **options), expected)


def test_compiles_with_inductor():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small)
    compiled = torch.compile(STREAM_ATTENTION.public, fullgraph=True)
    assert_accurate(evaluate(compiled, case), STREAM_ATTENTION, case)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_never_reads_a_value_on_the_host(operator):
    """Tensors on the meta device have no values: reading one, as a synchronising call would, raises."""
    case = make_case(operator, operator.small, device="meta")
    results = evaluate_without_values(operator, case)
    assert all(result.device.type == "meta" for result in results)


def evaluate_without_values(operator, case):
    leaves = {name: tensor.requires_grad_() for name, tensor in case.tensors.items()}
    with use_backend("reference"):
        output = operator.public(**leaves, **case.options)
    return [output, *torch.autograd.grad(output.sum(), list(leaves.values()))]


def test_opcheck_of_every_registered_operator():
    def listed(case):
        return [case.options[name] for name in ("targets", "candidates", "log_q")]

    checks = {
        "pairwise_kl": lambda case: (*case.tensors.values(), 0.7, True),
        "info_nce": lambda case: (*case.tensors.values(), case.options.get("labels"), 0.7),
        "linear_cross_entropy": lambda case: (*case.tensors.values(), case.options["targets"], 0.7, -100, "mean"),
        "mixture_cross_entropy": lambda case: (*case.tensors.values(), case.options["targets"], 0.7, -100, "mean"),
        "consistent_mixture_cross_entropy": lambda case: (
            *case.tensors.values(),
            case.options["targets"],
            case.options["drawn"],
            0.7,
            0.7,
            -100,
        ),
        "candidate_cross_entropy": lambda case: (
            *case.tensors.values(),
            *listed(case),
            case.options["kind"],
            case.options["positive_power"],
            0.7,
            -100,
            "mean",
        ),
        "candidate_mixture_cross_entropy": lambda case: (*case.tensors.values(), *listed(case), 0.7, -100, "mean"),
        "stream_attention": lambda case: (
            *case.tensors.values(),
            case.options["prefix_lengths"],
            0.5,
            0.3,
            case.options["seed"],
        ),
    }
    for operator in OPERATORS:
        case = make_case(operator, operator.small)
        for tensor in case.tensors.values():
            tensor.requires_grad_()
        overload = getattr(torch.ops.plr_kernels, operator.name).default
        # Compiled they are tested above, with other shapes and values.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(overload, checks[operator.name](case), test_utils=tests)
    overload = torch.ops.plr_kernels.top_items.default
    exclude = torch.tensor([[0, -1], [2, 3]])
    torch.library.opcheck(overload, (torch.randn(2, 3), torch.randn(7, 3), 3, exclude))
