"""The functions of a forward pass without gradients: by the rule of the harness, on every backend that has them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from plr_kernels import stream_attention, use_backend
from plr_kernels.forward_only.operator import bias_gelu, stream_attention_into, sum_norm
from tests.plr_kernels.harness import DTYPES, NUDGED_RUNS, allowed_error, largest_error, normal, targets

EPS = 1e-12


@pytest.fixture(params=[target for target in targets() if target.backend != "cpp"], ids=str)
def target(request):
    with use_backend(request.param.backend):
        yield request.param


def sum_norm_by_rows(left, right, weight, shift, index=None, repeat=1, bias=None):
    """The definition, a row at a time."""
    rows = len(left) * repeat if index is None else len(index)
    results = []
    for row in range(rows):
        total = left[row // repeat if index is None else int(index[row])] + right[row % len(right)]
        total = total if bias is None else total + bias
        results.append(functional.layer_norm(total, weight.shape, weight, shift, EPS))
    return torch.stack(results)


def gelu(inner, bias):
    return functional.gelu(inner + bias)


def assert_accurate(formula, result, tensors, terms=0.0, **others):
    """As the harness has it, for functions without gradients: tensors in their dtype, by name."""

    def run(dtype, nudge=None):
        cast = {name: each if each is None else each.to(dtype) for name, each in tensors.items()}
        if nudge is not None:
            eps = torch.finfo(dtype).eps
            cast = {
                name: each if each is None else each * (1 + eps * (2 * torch.rand(each.shape, generator=nudge) - 1))
                for name, each in cast.items()
            }
        return formula(**cast, **others)

    generator = torch.Generator().manual_seed(2)
    truth = run(torch.float64)
    in_float32 = [run(torch.float32, generator if number else None) for number in range(NUDGED_RUNS + 1)]
    assert result.shape == truth.shape
    result = result.cpu()
    allowed = allowed_error(truth, result.dtype, run(result.dtype), in_float32, terms)
    assert largest_error(result, truth) <= allowed


def vectors(dtype, dim, seed=0, **rows):
    """Random matrices of so many rows (0: a vector), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return {name: normal(generator, *([count] if count else []), dim).to(dtype) for name, count in rows.items()}


def on(target, tensors):
    return {name: None if each is None else each.to(target.device) for name, each in tensors.items()}


SUMS = {
    "embedding": ({"left": 19, "right": 5}, {"indexed": 15}),
    "residual": ({"left": 13, "right": 13, "bias": 0}, {}),
    "one row": ({"left": 1, "right": 1}, {}),
    "streams begin": ({"left": 3, "right": 4}, {"repeat": 4}),
    "streams go on": ({"left": 12, "right": 4}, {}),
    "many": ({"left": 70, "right": 7}, {"repeat": 2}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 16, 50, 300])
@pytest.mark.parametrize("form", SUMS)
def test_sum_norm_is_as_exact_as_its_formula(target, form, dim, dtype):
    rows, others = SUMS[form]
    tensors = vectors(dtype, dim, **rows, weight=0, shift=0)
    index = None
    if "indexed" in others:
        index = torch.randint(rows["left"], (others["indexed"],), generator=torch.Generator().manual_seed(1))
    repeat = others.get("repeat", 1)
    given = on(target, tensors | {"index": index})
    weight, shift, index_there = given.pop("weight"), given.pop("shift"), given.pop("index")
    result = sum_norm(given["left"], given["right"], weight, shift, EPS, index=index_there, repeat=repeat,
                      bias=given.get("bias"))  # fmt: skip
    assert result.dtype == dtype
    assert_accurate(sum_norm_by_rows, result, tensors, index=index, repeat=repeat)


def test_sum_norm_of_numbers_far_from_zero(target):
    """A variance as the mean of squares less the square of the mean would be nothing but rounding."""
    tensors = vectors(torch.float32, 50, left=6, right=6, weight=0, shift=0)
    tensors["left"] += 3000
    given = on(target, tensors)
    result = sum_norm(given["left"], given["right"], given["weight"], given["shift"], EPS)
    assert_accurate(sum_norm_by_rows, result, tensors)


def test_sum_norm_of_equal_numbers_is_the_shift(target):
    given = on(target, vectors(torch.float32, 50, weight=0, shift=0))
    row = torch.full((1, 50), 0.5, device=target.device)
    result = sum_norm(row, -2 * row, given["weight"], given["shift"], EPS)
    assert torch.equal(result[0], given["shift"])


def test_rows_of_wider_matrices_and_what_is_beside_them(target):
    tensors = vectors(torch.float32, 20, left=6, right=3, weight=0, shift=0)
    given = on(target, tensors)
    wide = {name: torch.full((len(given[name]), 33), torch.nan, device=target.device) for name in ("left", "right")}
    for name, each in wide.items():
        each[:, 5:25] = given[name]
    views = [each[:, 5:25] for each in wide.values()]
    plain = sum_norm(given["left"], given["right"], given["weight"], given["shift"], EPS)
    assert torch.equal(sum_norm(*views, given["weight"], given["shift"], EPS), plain)


def test_a_row_that_is_not_finite_stays_alone(target):
    given = on(target, vectors(torch.float32, 20, left=9, right=3, weight=0, shift=0))
    whole = sum_norm(*given.values(), EPS)
    given["left"][4] = torch.nan
    rest = sum_norm(*given.values(), EPS)
    others = torch.arange(9, device=target.device) != 4
    assert torch.equal(rest[others], whole[others])
    assert bool(rest[4].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 24), (70, 33)])
def test_gelu_is_as_exact_as_its_formula(target, rows, width, dtype):
    tensors = vectors(dtype, width, inner=rows, bias=0)
    tensors["inner"] *= 4
    given = on(target, tensors)
    result = bias_gelu(given["inner"].clone(), given["bias"])
    assert result.dtype == dtype
    assert_accurate(gelu, result, tensors)


def test_attention_is_written_where_it_is_wanted(target):
    """The heads of a position side by side; numbers and bits are stream_attention's."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (normal(generator, 2, 3, size, 8).float().to(target.device) for size in (5, 7, 7))
    own = tuple(normal(generator, 2, 3, 5, 2, 8).float().to(target.device) for _ in range(2))
    lengths = torch.tensor([[1, 2, 3, 4, 5], [7, 7, 1, 0, 3]], device=target.device)
    for some in (lengths, lengths[:, 0]):
        expected = stream_attention(query, key, value, *own, prefix_lengths=some)
        memory = torch.full((2, 5, 3, 10), -7.0, device=target.device)
        stream_attention_into(memory[..., :8].transpose(1, 2), query, key, value, *own, some)
        assert torch.equal(memory[..., :8].transpose(1, 2), expected)
        assert bool((memory[..., 8:] == -7).all())
