from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plr.evaluation import Ranking, compare, holm, metrics, paired_comparison
from plr.evaluation.significance import per_user, student_t_p_value


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.1, 1.0, 1.5, 2.0, 5.0, 40.0])
def test_p_values_of_one_two_and_three_degrees_have_closed_forms(t):
    assert student_t_p_value(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-12, abs=1e-15)
    assert student_t_p_value(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-11, abs=1e-15)
    angle = math.atan(t / math.sqrt(3))
    three = 1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle))
    assert student_t_p_value(-t, 3) == pytest.approx(three, rel=1e-8, abs=1e-15)


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [(2.228138852, 10, 0.05), (2.750, 30, 0.01), (3.291, 10**7, 0.001), (12.706, 1, 0.05)],
)
def test_p_values_of_the_printed_tables(t, degrees, p):
    assert student_t_p_value(t, degrees) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize("degrees", [5, 22_362, 10**7])
def test_p_values_fall_smoothly_where_the_two_expansions_meet(degrees):
    ts = np.linspace(0, 8, 400)
    p = np.array([student_t_p_value(t, degrees) for t in ts])
    assert p[0] == 1
    assert (np.diff(p) < 0).all()
    assert np.abs(np.diff(p, n=2)).max() < 5e-4


def test_large_samples_have_the_tails_of_the_normal_distribution():
    assert student_t_p_value(10.0, 10**7) == pytest.approx(math.erfc(10 / math.sqrt(2)), rel=1e-3)
    assert student_t_p_value(0.5, 10**7) == pytest.approx(math.erfc(0.5 / math.sqrt(2)), rel=1e-7)


def test_the_paired_t_test_of_a_worked_example():
    # Student's own sleep data (Biometrika 1908): extra hours of ten patients under two drugs.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    comparison = paired_comparison(first, second)
    assert comparison.n == 10
    assert comparison.difference == pytest.approx(-1.58)
    assert comparison.t == pytest.approx(-4.0621, abs=5e-5)
    assert comparison.p_value == pytest.approx(0.002833, abs=5e-7)
    assert comparison.low < -1.58 < comparison.high < 0


def test_the_bootstrap_repeats_with_its_seed_and_covers_the_normal_interval():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 2000)
    zeros = np.zeros(2000)
    comparison = paired_comparison(differences, zeros, resamples=4000)
    assert comparison == paired_comparison(differences, zeros, resamples=4000)
    assert comparison != paired_comparison(differences, zeros, resamples=4000, seed=1)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(2000)
    assert comparison.low == pytest.approx(differences.mean() - half, abs=half / 10)
    assert comparison.high == pytest.approx(differences.mean() + half, abs=half / 10)


def test_constant_differences_are_certain_or_nothing():
    assert paired_comparison([1.0, 2.0], [1.0, 2.0], resamples=10).p_value == 1
    certain = paired_comparison([1.0, 2.0], [2.0, 3.0], resamples=10)
    assert (certain.t, certain.p_value, certain.low, certain.high) == (-math.inf, 0, -1, -1)


@pytest.mark.parametrize(
    ("first", "second", "settings"),
    [
        ([1.0], [2.0], {}),
        ([1.0, 2.0], [1.0], {}),
        ([1.0, math.nan], [1.0, 2.0], {}),
        ([1.0, 2.0], [1.0, 3.0], {"confidence": 1.0}),
        ([1.0, 2.0], [1.0, 3.0], {"resamples": 0}),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, settings):
    with pytest.raises(ValueError):
        paired_comparison(first, second, **settings)


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 1))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - step) * p_values[index] > level:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    if level < 1:
        assert {index for index in range(len(p_values)) if adjusted[index] <= level} == rejected


@pytest.mark.parametrize("p_values", [[-0.1], [1.1], [math.nan]])
def test_holm_refuses_what_is_no_probability(p_values):
    with pytest.raises(ValueError, match="p-values"):
        holm(p_values)


def ranking(users: list[int], targets: list[int], ranks: list[float]) -> Ranking:
    return Ranking(torch.tensor(users), torch.tensor(targets), torch.tensor(ranks, dtype=torch.float64))


def test_one_user_shows_nothing():
    """A difference without a spread would have p = 0."""
    one, two = (ranking([3, 3], [1, 2], ranks) for ranks in ([1.0, 2.0], [1.0, 3.0]))
    with pytest.raises(ValueError, match="a paired test needs two users at least; found 1"):
        compare([one], [two])


def test_users_count_once_however_many_rows_they_have_and_in_whatever_order():
    one = ranking([7, 3, 7], [1, 2, 5], [1.0, 3.0, 20.0])
    two = ranking([3, 7, 7], [2, 5, 1], [1.0, 1.0, 3.0])
    assert per_user([one, two]).tolist() == [[0.5, 0.5], [1.0, 0.75]]


def test_any_metric_can_be_compared_and_others_are_refused():
    one, two = (ranking([0, 1], [4, 4], ranks) for ranks in ([1.0, 4.0], [2.0, 30.0]))
    assert per_user([one, two], "mrr@10").tolist() == [[1.0, 0.25], [0.5, 0.0]]
    assert per_user([one, two], "recall@2").tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert compare([one], [two], metric="mrr", resamples=10).difference == pytest.approx((0.5 + 0.25 - 1 / 30) / 2)
    for name in ("ndcg", "ndcg@", "ndcg@0", "map@10", "recall@-1", "recall@1.5"):
        with pytest.raises(ValueError, match=r"a metric is|cut-off"):
            compare([one], [two], metric=name)


def test_the_effect_size_is_the_difference_in_standard_deviations():
    comparison = paired_comparison([3.0, 5.0, 4.0], [1.0, 1.0, 1.0], resamples=10)
    assert comparison.effect_size == pytest.approx(3.0)  # 2, 4, 3: mean 3, standard deviation 1


def test_systems_are_compared_by_the_mean_of_their_runs():
    users, targets = [0, 1, 2], [4, 4, 5]
    runs = [ranking(users, targets, ranks) for ranks in ([1.0, 3.0, 50.0], [3.0, 3.0, 1.0], [1.0, 1.0, 1.0])]
    comparison = compare(runs[:2], runs[2:], resamples=100)
    expected = np.mean([metrics(run.ranks)["ndcg@10"] for run in runs[:2]]) - 1
    assert comparison.difference == pytest.approx(expected)
    assert comparison.n == 3


def test_the_interval_of_several_runs_is_over_the_runs_too():
    """Runs that differ in all users alike: drawing users alone would give an interval of no width."""
    users, targets = list(range(40)), [3] * 40
    first, second = ([ranking(users, targets, [float(rank)] * 40) for rank in ranks] for ranks in ((1, 3), (7, 7)))
    comparison = compare(first, second, resamples=400)
    best, middle, third = (1 / math.log2(rank + 1) for rank in (1, 3, 7))
    assert comparison.difference == pytest.approx((best + middle) / 2 - third)
    assert comparison.low == pytest.approx(middle - third)  # both draws were the second run: one in four
    assert comparison.high == pytest.approx(best - third)
    one = compare(first[:1], second[:1], resamples=400)
    assert (one.low, one.high) == (pytest.approx(best - third), pytest.approx(best - third))


def test_systems_of_different_rows_or_without_runs_are_not_compared():
    one = ranking([0, 1], [4, 4], [1.0, 2.0])
    with pytest.raises(ValueError, match="one split"):
        compare([one], [ranking([0, 1], [4, 5], [1.0, 2.0])])
    with pytest.raises(ValueError, match="one split"):
        compare([one], [ranking([0, 1, 2], [4, 4, 4], [1.0, 2.0, 3.0])])
    for first, second in (([], [one]), ([one], []), ([], [])):
        with pytest.raises(ValueError, match="at least one"):
            compare(first, second)
