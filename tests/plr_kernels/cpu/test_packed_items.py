"""Few rows ranked by items as 8-bit integers: to the bit what a sweep in float32 answers, whatever the numbers are."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension

SETS = [name for name in extension.INSTRUCTION_SETS[1:-1] if extension._cpp.instruction_set(name)]
ANY = 2**30
"""Integers for any number of rows; -1 stands for as many as is faster, 0 for none."""


def packed(name, items, quantize=True):
    return extension._cpp.PackedItems(name, extension.as_matrix(items), quantize)


def ranked(packed_items, states, k, quantized_states, exclude=None, allowed=None, threads=1):
    """Scores as bits [B, k], item numbers [B, k], and how many rows and items integers were taken for."""
    scores = torch.empty(len(states), k)
    ids = torch.empty(len(states), k, dtype=torch.int64)
    counts = packed_items.top(
        threads,
        extension.as_matrix(states),
        0,
        1,
        k,
        1.0,
        *((0, 0) if exclude is None else (exclude.data_ptr(), exclude.shape[1])),
        0 if allowed is None else allowed.data_ptr(),
        quantized_states,
        scores.data_ptr(),
        ids.data_ptr(),
    )
    return scores.view(torch.int32), ids, counts


def assert_equal_to_the_bit(name, items, states, k, **filters):
    """Return what integers were taken for."""
    items, states = items.contiguous(), states.contiguous()
    packed_items = packed(name, items)
    scores, ids, counts = ranked(packed_items, states, k, ANY, **filters)
    true_scores, true_ids, (rows, rescored) = ranked(packed_items, states, k, 0, **filters)
    assert (rows, rescored) == (0, 0)
    assert torch.equal(ids, true_ids)
    assert torch.equal(scores, true_scores)
    return counts


def quantizes(name):
    return packed(name, torch.ones(4000, 64)).quantized_states(1) > 0


WITH_INTEGERS = [name for name in SETS if quantizes(name)]
on_every_set = pytest.mark.parametrize("name", WITH_INTEGERS)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator)


def some(generator, count, one_in):
    return torch.randint(0, one_in, (count,), generator=generator) == 0


def with_outliers(generator, count, dim):
    """One number of a row is far larger than the others, which quantisation leaves nothing of."""
    table = normal(generator, count, dim)
    table[:, 0] *= torch.where(some(generator, count, 3), 1e5, 1.0)
    return table


def near_ties(generator, count, dim):
    """Directions that differ by no more than the bounds do, or than rounding does."""
    size = 10.0 ** torch.randint(-8, -1, (count, 1), generator=generator)
    return normal(generator, 1, dim) + size * normal(generator, count, dim)


def not_finite(generator, count, dim):
    table = normal(generator, count, dim)
    for value in (torch.nan, torch.inf, -torch.inf, 3e38):
        table[torch.randint(0, count, (count // 400,), generator=generator), dim // 2] = value
    return table


TABLES = {
    "normal": normal,
    "with outliers": with_outliers,
    "heavy tails": lambda generator, count, dim: normal(generator, count, dim) ** 9,
    "near ties": near_ties,
    "duplicates": lambda generator, count, dim: normal(generator, 40, dim)[
        torch.randint(0, 40, (count,), generator=generator)
    ],
    "integers": lambda generator, count, dim: torch.randint(-2, 3, (count, dim), generator=generator).float(),
    "zeros": lambda generator, count, dim: torch.zeros(count, dim),
    "some zeros": lambda generator, count, dim: normal(generator, count, dim) * some(generator, count, 2)[:, None],
    "subnormal": lambda generator, count, dim: 1e-42 * normal(generator, count, dim),
    "tiny": lambda generator, count, dim: 1e-30 * normal(generator, count, dim),
    "magnitudes": lambda generator, count, dim: normal(generator, count, dim)
    * 2.0 ** torch.randint(-140, 60, (count, 1), generator=generator),
    "one number each": lambda generator, count, dim: torch.eye(dim)[
        torch.randint(0, dim, (count,), generator=generator)
    ],
    "not finite": not_finite,
}


def states_of(kind, generator, rows, dim):
    states = normal(generator, rows, dim)
    if kind == "one number":
        states = torch.eye(dim)[torch.randint(0, dim, (rows,), generator=generator)]
    elif kind == "signs":
        states = states.sign()
    elif kind == "magnitudes":
        states *= 2.0 ** torch.randint(-145, 100, (rows, 1), generator=generator)
    elif kind == "odd":
        states[0, 0] = (0.0, torch.nan, torch.inf, 1e-42)[rows % 4]
        states[-1] = 0.0
    return states


@on_every_set
@settings(max_examples=150)
@given(data=st.data())
def test_any_table_states_and_filters(name, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6), "seed"))
    kind = data.draw(st.sampled_from(sorted(TABLES)), "table")
    dim = data.draw(st.integers(1, 70) | st.sampled_from([96, 255, 256, 257, 517, 1024]), "dim")
    count = data.draw(st.integers(1, 200) | st.integers(800, 2600), "items")
    rows = data.draw(st.integers(1, 5) | st.just(33), "rows")
    k = min(count, data.draw(st.sampled_from([1, 2, 10, 60, count]), "k"))
    states = states_of(
        data.draw(st.sampled_from(["normal", "one number", "signs", "magnitudes", "odd"]), "states"),
        generator,
        rows,
        dim,
    )
    exclude = allowed = None
    if data.draw(st.booleans(), "exclude"):
        exclude = torch.randint(-1, count, (rows, 7), generator=generator)
    if data.draw(st.booleans(), "allowed"):
        allowed = some(generator, count, data.draw(st.sampled_from([1, 2, 30]), "one in"))
    assert_equal_to_the_bit(
        name, TABLES[kind](generator, count, dim), states, k, exclude=exclude, allowed=allowed
    )


@on_every_set
@pytest.mark.parametrize("dim", [16, 64, 100, 256])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_integers_leave_little_to_score(name, dim, rows):
    generator = torch.Generator().manual_seed(dim)
    counts = assert_equal_to_the_bit(name, normal(generator, 4000, dim), normal(generator, rows, dim), 10)
    assert counts[0] == rows
    assert 10 * rows <= counts[1] <= 60 * rows


@on_every_set
def test_best_of_the_forbidden_are_left_out(name):
    """The bounds of what a row must not return prove nothing."""
    generator = torch.Generator().manual_seed(0)
    items, states = normal(generator, 4000, 64), normal(generator, 3, 64)
    best = (states @ items.T).argsort(descending=True)
    allowed = torch.ones(4000, dtype=torch.bool)
    allowed[best[0, :500]] = False
    counts = assert_equal_to_the_bit(name, items, states, 10, exclude=best[:, :500].contiguous(), allowed=allowed)
    assert counts[0] == 3


def pairs_at_the_bounds(generator, dim, count, signs):
    """Pairs of items: the first has the larger score by a hair, and by integers the smaller one by twice the bound.

    An item is q plus or minus .49 in every number but the first, in the direction of the state; so the state's product
    with what rounding leaves is the product of their norms.
    """
    ahead = int(2 * 0.49 * (dim - 1)) - 1
    q = torch.randint(10, 91, (count, dim), generator=generator) * signs
    q[:, 0] = 127 * signs[0]
    better = q.clone()
    better[:, 1:] += 0.49 * signs[1:]
    worse = q.clone()
    worse[:, 1:] -= 0.49 * signs[1:]
    worse[:, 1 : 1 + ahead] += signs[1 : 1 + ahead]
    return better.float() / 16, worse.float() / 16


@on_every_set
@pytest.mark.parametrize("dim", [16, 64, 90])
@pytest.mark.parametrize("order", [1, -1])
def test_items_at_their_bounds(name, dim, order):
    generator = torch.Generator().manual_seed(dim)
    signs = normal(generator, dim).sign().double()
    better, worse = pairs_at_the_bounds(generator, dim, 40, signs)
    states = signs.float()[None] * 3
    far = 0.01 * normal(generator, 2000, dim)
    for one, other in zip(better, worse, strict=True):
        assert float(one.double() @ signs) > float(other.double() @ signs)
        items = torch.cat([far[:1000], torch.stack([one, other][::order]), far[1000:]])
        rows, rescored = assert_equal_to_the_bit(name, items, states, 1)
        assert (rows, rescored) == (1, 2)


@on_every_set
def test_threads_and_rows_change_nothing(name):
    generator = torch.Generator().manual_seed(5)
    items, states = normal(generator, 30_000, 64), normal(generator, 9, 64)
    packed_items = packed(name, items)
    scores, ids, _ = ranked(packed_items, states, 20, 0)
    for threads in (1, 3):
        found = ranked(packed_items, states, 20, ANY, threads=threads)
        assert found[2][0] == 9
        assert torch.equal(found[0], scores)
        assert torch.equal(found[1], ids)
        alone = ranked(packed_items, states[4:5].contiguous(), 20, ANY, threads=threads)
        assert torch.equal(alone[0], scores[4:5])
        assert torch.equal(alone[1], ids[4:5])


@on_every_set
@pytest.mark.parametrize(
    ("table", "states"),
    [
        (torch.ones(4000, 8), torch.ones(1, 8)),  # all may be among the best
        (torch.ones(4000, 8), torch.zeros(1, 8)),
        (torch.ones(4000, 8), torch.full((1, 8), 1e30)),
        (torch.ones(4000, 8), torch.full((1, 8), torch.nan)),
        (torch.full((4000, 8), 1e30), torch.ones(1, 8)),
    ],
)
def test_where_integers_prove_nothing_float32_does(name, table, states):
    assert assert_equal_to_the_bit(name, table, states, 5) == (0, 0)


@on_every_set
def test_rows_that_integers_do_not_do_for_are_ranked_among_others(name):
    generator = torch.Generator().manual_seed(3)
    items, states = normal(generator, 3000, 40), normal(generator, 7, 40)
    items[:, 0] = 1.0
    states[2] = torch.eye(40)[0]  # whose scores are all the same
    states[4] = 0.0
    states[6, 1] = torch.inf
    exclude = torch.randint(-1, 3000, (7, 5), generator=generator)
    allowed = some(generator, 3000, 2)
    for filters in ({}, {"exclude": exclude}, {"allowed": allowed}, {"exclude": exclude, "allowed": allowed}):
        assert assert_equal_to_the_bit(name, items, states, 10, **filters)[0] == 4


@on_every_set
def test_the_rule_takes_integers_where_tables_are_large(name):
    generator = torch.Generator().manual_seed(1)
    items, states = normal(generator, 5000, 64), normal(generator, 3, 64)
    packed_items = packed(name, items)
    assert packed_items.quantized_states(5) == 1
    assert packed_items.quantized_states(100) == 0
    assert ranked(packed_items, states[:1], 5, -1)[2][0] == 1
    assert ranked(packed_items, states, 5, -1)[2][0] == 0
    without = packed(name, items, quantize=False)
    assert without.quantized_states(5) == 0
    assert ranked(without, states[:1], 5, -1)[2] == (0, 0)


def test_instruction_sets_with_integers():
    assert not quantizes("generic")
    assert "avx2" not in SETS or quantizes("avx2")
