"""The C++ backend: every instruction set, every way its blocks can end, any number of threads."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench.peers import extra_memory, training_step
from plr_kernels import extension, info_nce, linear_cross_entropy, pairwise_kl, top_items, use_backend
from tests.plr_kernels.harness import (
    CANDIDATE_BCE,
    CANDIDATE_CROSS_ENTROPY,
    DTYPES,
    INFO_NCE,
    LAYOUTS,
    LINEAR_CROSS_ENTROPY,
    PAIRWISE_KL,
    STREAM_ATTENTION,
    assert_accurate,
    evaluate,
    make_case,
)

pytestmark = pytest.mark.usefixtures("on_cpp")

# test_stream_attention.py has more on the last.
OPERATORS = (
    PAIRWISE_KL,
    INFO_NCE,
    LINEAR_CROSS_ENTROPY,
    STREAM_ATTENTION,
    CANDIDATE_CROSS_ENTROPY,
    CANDIDATE_BCE,
)
# test_float32_parts.py has what differs in the last, which must be asked for.
INSTRUCTION_SETS = [name for name in extension.INSTRUCTION_SETS[1:-1] if extension._cpp.instruction_set(name)]
# Those that multiply in bfloat16.
BFLOAT16_SETS = [name for name in ("avx512_amx", "avx512_bf16") if name in INSTRUCTION_SETS]

for_every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


def check(operator, dtype=torch.float32, **sizes):
    case = make_case(operator, operator.large | sizes, dtype=dtype)
    assert_accurate(evaluate(operator.public, case), operator, case)


# ------------------------------------------------------------------------------------------ anything at once

# Logits up to 8: beyond, distributions may be so near one-hot that what is left of a gradient is below the rounding of
# the float64 truth.
LOGITS = (0.1, 1.0, 4.0, 8.0)


def draw_sizes(data, operator):
    """Sizes about where the blocks of the kernels end, and their usual values."""
    drawn = {
        "batch": st.integers(1, 40),
        "group": st.integers(1, 9),
        "rows": st.integers(1, 70),
        "groups": st.integers(1, 5),
        "vocabulary": st.integers(2, 60) | st.integers(90, 200) | st.integers(1020, 1100),
        "dim": st.integers(1, 70) | st.integers(250, 260),
        "temperature": st.sampled_from([1.0, 0.3, 0.05, 3.0]),
    }
    return {name: data.draw(drawn.get(name, st.just(size)), name) for name, size in operator.large.items()}


@pytest.mark.parametrize("operator", OPERATORS[:3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_any_sizes_layouts_magnitudes_and_gradients(operator, dtype, data):
    case = make_case(operator, draw_sizes(data, operator), generator_seed=data.draw(st.integers(0, 10**6), "seed"))
    tensors = case.tensors
    if operator is INFO_NCE:
        for name in tensors:
            tensors[name] *= data.draw(st.sampled_from([1e-3, 1.0, 1e3]), f"magnitude of {name}")
    else:
        logits = tensors["states"] @ tensors["items"].T / case.options["temperature"]
        share = data.draw(st.sampled_from([0.01, 1.0, 10.0]), "magnitude of items")
        wanted = data.draw(st.sampled_from(LOGITS), "largest logit")
        tensors["states"] *= wanted / logits.abs().max() / share
        tensors["items"] *= share
    for name, tensor in tensors.items():
        tensors[name] = data.draw(st.sampled_from(LAYOUTS[:3]), f"layout of {name}")(tensor.to(dtype))
    wanted = data.draw(st.sets(st.sampled_from(list(tensors))), "gradients of")
    assert_accurate(evaluate(operator.public, case, wanted), operator, case)


@for_every_operator
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("_default_dtype_restored")
def test_the_default_dtype_changes_nothing(operator, default):
    case = make_case(operator, operator.small)
    expected = evaluate(operator.public, case)
    torch.set_default_dtype(default)
    for name, result in evaluate(operator.public, case).items():
        assert result.dtype == expected[name].dtype
        assert torch.equal(result, expected[name]), name


# ------------------------------------------------------------------------------------------ instruction sets


@for_every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(monkeypatch, operator, dtype, instruction_set):
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    check(operator, dtype)
    check(operator, dtype, dim=37)
    if operator in (INFO_NCE, LINEAR_CROSS_ENTROPY):
        check(operator, dtype, temperature=0.02)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_as_torch_rounds(monkeypatch, instruction_set, dtype):
    """The gradient of one state's score is its item: any number goes in, and comes out rounded."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.cat([torch.randn(2000, generator=generator) * 2.0**power for power in range(-30, 15)])
    numbers = numbers.clamp(-65504, 65504)  # all are finite in float16
    items = numbers.to(dtype).reshape(-1, 5)[None]
    items = torch.cat([torch.zeros_like(items), items]).transpose(0, 1)  # [cases, V = 2, D = 5]
    for table in items[::97]:
        states = torch.zeros(1, 5, dtype=dtype, requires_grad=True)
        # With logits 0 and 0 the gradient is (items[0] − items[1]) / 2 times the weight.
        loss = linear_cross_entropy(states, table, torch.tensor([0]), reduction="sum")
        (gradient,) = torch.autograd.grad(loss * 0.75, states)
        assert torch.equal(gradient[0], (table[1].float() * 0.375).to(dtype))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_exponentials_are_right_to_the_last_bits(monkeypatch, instruction_set):
    """With state 1 and items x, the gradient of item v is its probability: ratios of two are exponentials."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    logits = torch.linspace(-1, 0, 4001)[:, None].requires_grad_()
    loss = linear_cross_entropy(torch.ones(1, 1), logits, torch.tensor([0]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    ratios = gradient[1:].double() / gradient[-1].double()
    torch.testing.assert_close(ratios, logits.detach()[1:].double().exp(), rtol=3e-7, atol=0)
    # Far below the largest, down to where float32 has no normal numbers.
    logits = torch.linspace(-100, 0, 4001)[:, None].requires_grad_()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(torch.ones(1, 1), logits, torch.tensor([4000])), logits)
    probabilities = logits.detach()[:, 0].double().softmax(0)
    normal = probabilities[:-1] > 1e-37
    torch.testing.assert_close(gradient[:-1, 0][normal].double(), probabilities[:-1][normal], rtol=2e-5, atol=0)
    assert (gradient[:-1, 0][probabilities[:-1] < 1e-39] == 0).all()


@pytest.mark.parametrize("instruction_set", BFLOAT16_SETS)
@pytest.mark.parametrize("dim", [32, 63, 64, 97, 130])
@pytest.mark.parametrize("vocabulary", [1024, 1025, 1039, 1057, 1900])
def test_products_of_bfloat16_that_are_exact(monkeypatch, instruction_set, vocabulary, dim):
    """Of small integers, whatever the parts of a tile at the edges; torch has its own products before and after."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(-4, 5, (70, dim), generator=generator).bfloat16()
    items = torch.randint(-4, 5, (vocabulary, dim), generator=generator).bfloat16()
    given, table = states.clone(), items.clone()
    before = given @ table.T
    scores, ids = top_items(states, items, vocabulary)
    exact = (states.double() @ items.double().T).gather(1, ids)
    assert torch.equal(scores.double(), exact)
    assert torch.equal(ids.sort().values, torch.arange(vocabulary).expand(70, -1))
    # Of one item that is far above the others the gradient is a sum of states, or of items, with weights 0 and ±1.
    states[:, 0], items[:, 0], items[5, 0] = 128, 0, 128
    leaves = [states.requires_grad_(), items.requires_grad_()]
    loss = linear_cross_entropy(*leaves, torch.arange(70) % 7, reduction="sum")
    by_states, by_items = torch.autograd.grad(loss, leaves)
    by_logit = torch.zeros(70, vocabulary, dtype=torch.float64)
    by_logit[:, 5] += 1
    by_logit[torch.arange(70), torch.arange(70) % 7] -= 1
    assert torch.equal(by_states, (by_logit @ items.detach().double()).bfloat16())
    assert torch.equal(by_items, (by_logit.T @ states.detach().double()).bfloat16())
    assert torch.equal(given @ table.T, before)


@pytest.mark.parametrize("instruction_set", BFLOAT16_SETS)
@pytest.mark.parametrize("vocabulary", [1040, 1500, 1900, 2300, 2650])
def test_products_of_bfloat16_in_blocks_of_every_size(monkeypatch, instruction_set, vocabulary):
    """Of 36, 48, 60, 72 and 84 items, which are no whole tiles, with more states than one panel has."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    for operator in (LINEAR_CROSS_ENTROPY, PAIRWISE_KL):
        check(operator, torch.bfloat16, vocabulary=vocabulary)


def test_unknown_instruction_set():
    assert extension._cpp.instruction_set("sse9") is None
    cpu = Path("/proc/cpuinfo")
    by_intel = cpu.exists() and "GenuineIntel" in cpu.read_text(encoding="utf-8")
    names = [name for name in INSTRUCTION_SETS if name != "avx512_bf16" or not by_intel]
    assert extension._cpp.instruction_set("auto") == names[0]


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("group", [2, 3, 5, 16, 17])
def test_groups_of_any_size(group, batch):
    check(PAIRWISE_KL, group=group, batch=batch, vocabulary=101, dim=9)
    check(PAIRWISE_KL, group=group, batch=batch, vocabulary=101, dim=9, detach_reference=True)


@for_every_operator
@pytest.mark.parametrize("dim", [1, 15, 16, 17, 31, 32, 33, 48, 255, 256, 257, 600])
def test_any_dimension(operator, dim):
    check(operator, dim=dim)


@pytest.mark.parametrize("operator", [PAIRWISE_KL, LINEAR_CROSS_ENTROPY], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 2, 23, 24, 25, 95, 96, 97, 3073])
def test_any_number_of_items(operator, vocabulary):
    check(operator, vocabulary=vocabulary, dim=7)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4200])
def test_any_number_of_rows(rows):
    check(LINEAR_CROSS_ENTROPY, rows=rows, vocabulary=211, dim=5)


@pytest.mark.parametrize("batch", [1, 2, 24, 25, 31, 33, 96, 770])
@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.028, 0.004])
def test_any_batch_of_views(batch, temperature):
    check(INFO_NCE, batch=batch, dim=6, temperature=temperature)


def test_views_are_not_copied():
    """Not even as unit vectors: beside its results, info_nce takes less memory than half of one view."""
    views = torch.randn(2, 64, 128, 256)
    step = training_step(info_nce, *views, backend="cpp")
    step()
    extra = extra_memory(step)
    if extra is None:
        pytest.skip("the system does not tell the peak")
    assert extra["both"] < views[0].nbytes / 2


def test_groups_beyond_one_stretch_of_states():
    check(PAIRWISE_KL, batch=701, group=4, vocabulary=211, dim=5)


@for_every_operator
def test_rows_of_a_wider_matrix(operator):
    """A slice of columns is read in place, its rows apart by more than their length."""
    case = make_case(operator, operator.large)
    for name, tensor in case.tensors.items():
        wider = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), torch.nan)
        wider[..., :-3] = tensor
        case.tensors[name] = wider[..., :-3]
    assert_accurate(evaluate(operator.public, case), operator, case)


def test_more_scores_than_32_bits_count():
    rows, vocabulary = 66_000, 33_000
    assert rows * vocabulary > 2**31
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(vocabulary, 1, generator=generator)
    states = torch.ones(rows, 1)
    targets = torch.full((rows,), vocabulary - 1)
    leaves = [states.requires_grad_(), items.requires_grad_()]
    losses = linear_cross_entropy(*leaves, targets, reduction="none")
    state_gradient, item_gradient = torch.autograd.grad(losses.sum(), leaves)
    exact = items.detach().double()[:, 0].requires_grad_()
    loss = exact.logsumexp(0) - exact[-1]
    (gradient,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(losses.double(), loss.detach().expand(rows), rtol=1e-5, atol=0)
    torch.testing.assert_close(item_gradient[:, 0].double(), rows * gradient, rtol=1e-4, atol=0)
    # d loss / d state = Σ p · item − item of the target
    expected = ((gradient * exact.detach()).sum()).expand(rows, 1)
    torch.testing.assert_close(state_gradient.double(), expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ threads


@for_every_operator
@pytest.mark.usefixtures("threads_restored")
def test_the_number_of_threads_changes_no_bit(operator):
    sizes = {"rows": 900, "batch": 300 if operator is PAIRWISE_KL else 900, "vocabulary": 5003, "dim": 40, "group": 3}
    sizes = {name: sizes.get(name, size) for name, size in operator.large.items()}
    case = make_case(operator, sizes)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(evaluate(operator.public, case))
    for other in results[1:]:
        for name, result in other.items():
            assert torch.equal(result, results[0][name]), name


def test_denormal_numbers_are_left_to_others():
    """Numbers below 1e-38 count as zero inside the kernels only."""
    check(LINEAR_CROSS_ENTROPY)
    assert (torch.tensor([1e-40]) * torch.tensor([0.5])).item() != 0


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_not_a_number_stays_where_it_is(monkeypatch, instruction_set):
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    states, items = torch.randn(5, 8), torch.randn(40, 8)
    targets = torch.tensor([3, 7, -100, 39, 0])
    expected = linear_cross_entropy(states, items, targets, reduction="none")
    states[1, 3] = torch.nan
    states[2] = torch.nan  # not counted: of no consequence
    states[3, 0] = torch.inf
    losses = linear_cross_entropy(states, items, targets, reduction="none")
    assert losses.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(losses[[0, 2, 4]], expected[[0, 2, 4]])
    assert pairwise_kl(states[None, :2], items).isnan()
    assert info_nce(states[None], states.flip(0)[None], temperature=0.5).isnan()
    assert info_nce(states[None], states.flip(0)[None], temperature=0.01).isnan()


def test_small_losses_are_as_accurate_as_large_ones():
    """Where the positive wins by far, a loss of 1e-5 must not drown in the rounding of the scores."""
    view = torch.eye(8)[None] + 0.01
    loss = info_nce(view, view, temperature=0.08)
    with use_backend("reference"):
        exact = info_nce(view.double(), view.double(), temperature=0.08)
    assert 1e-6 < exact.item() < 1e-3
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    states = 5 * torch.eye(8) + 0.01
    loss = linear_cross_entropy(states, states, torch.arange(8))
    exact = linear_cross_entropy_in_float64(states, torch.arange(8))
    assert 1e-12 < exact.item() < 1e-3
    torch.testing.assert_close(loss.double(), exact, rtol=1e-2, atol=torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("vocabulary", [2, 5, 97, 1031])
def test_divergences_over_items_that_are_nearly_alike(monkeypatch, instruction_set, vocabulary, spread):
    """The gradient by a state is then a small difference of items, whose weights must add up to 0."""
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    for seed, detach_reference in enumerate((False, True)):
        sizes = {"batch": 5, "group": 3, "vocabulary": vocabulary, "dim": 12, "detach_reference": detach_reference}
        case = make_case(PAIRWISE_KL, PAIRWISE_KL.large | sizes, generator_seed=seed)
        items = case.tensors["items"]
        items.copy_(items[:1] + spread * items)
        assert_accurate(evaluate(PAIRWISE_KL.public, case), PAIRWISE_KL, case)


def linear_cross_entropy_in_float64(states, targets):
    with use_backend("reference"):
        return linear_cross_entropy(states.double(), states.double(), targets)


def test_target_outside_the_items_raises_without_the_public_checks():
    targets = torch.tensor([0, 7])
    with pytest.raises(ValueError, match=r"targets must be in \[0, V\) or ignore_index \(V=7\), found 7"):
        torch.ops.plr_kernels.linear_cross_entropy_forward(
            torch.randn(2, 3), torch.randn(7, 3), targets, 1.0, -100, "cpp"
        )


# ------------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("operator", [PAIRWISE_KL, INFO_NCE, LINEAR_CROSS_ENTROPY], ids=str)
def test_opcheck(operator):
    case = make_case(operator, operator.small | ({"labels": 1} if operator is INFO_NCE else {}))
    tensors = [tensor.requires_grad_() for tensor in case.tensors.values()]
    tensors += [case.options[name] for name in ("targets", "labels") if name in case.options]
    between = {"pairwise_kl": (True,), "info_nce": (), "linear_cross_entropy": (-100,)}[operator.name]
    ops = torch.ops.plr_kernels
    forward = getattr(ops, f"{operator.name}_forward").default
    torch.library.opcheck(forward, (*tensors, 0.7, *between, "cpp"))
    output, *saved = (result.detach() for result in forward(*tensors, 0.7, *between, "cpp"))
    backward = getattr(ops, f"{operator.name}_backward").default
    tensors = [torch.ones_like(output), *(tensor.detach() for tensor in tensors), *saved]
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (*tensors, 0.7, *between, *needs, "cpp"))


def test_compiles_with_inductor():
    operator = LINEAR_CROSS_ENTROPY
    case = make_case(operator, operator.large)
    compiled = torch.compile(operator.public, fullgraph=True)
    for name, result in evaluate(compiled, case).items():
        torch.testing.assert_close(result, evaluate(operator.public, case)[name], msg=name)
