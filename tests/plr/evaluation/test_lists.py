"""Metrics of recommended lists against slow plain definitions, and against figures worked out by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.evaluation import ListMetrics


def plain(lists, targets, counts, k, categories):
    """Return the metrics at k by their definitions; lists without -1."""
    items, total = range(len(counts)), max(sum(counts), 1)
    popular = sorted(items, key=lambda item: (-counts[item], item))[:k]
    tops = [row[:k] for row in lists]
    pairs = list(zip(tops, targets, strict=True))
    result = {
        "precision": mean([sum(item == target for item in top) / k for top, target in pairs]),
        "map": mean([1 / (top.index(target) + 1) if target in top else 0 for top, target in pairs]),
        "coverage": len({item for top in tops for item in top}) / len(counts),
    }
    shown = [sum(item in top for top in tops) for item in items]
    if sum(shown):
        apart = sum(abs(a - b) for a in shown for b in shown)
        result["gini"] = apart / (2 * len(counts) * sum(shown))
        full = [top for top in tops if top]
        result["popularity"] = mean([mean([counts[item] for item in top]) for top in full])
        result["novelty"] = mean([mean([-math.log2(max(counts[item], 1) / total) for item in top]) for top in full])
    serendipity = []
    for top, target in pairs:
        unexpected = [item for item in top if item not in popular]
        serendipity.append((target in unexpected) / len(unexpected) if unexpected else 0)
    result["serendipity"] = mean(serendipity)
    if categories is not None:
        diverse = []
        for top in tops:
            distances = [
                1 - len(categories[a] & categories[b]) / len(categories[a] | categories[b])
                for a, b in combinations(top, 2)
                if categories[a] and categories[b]
            ]
            if distances:
                diverse.append(mean(distances))
        if diverse:
            result["diversity"] = mean(diverse)
    return {f"{name}@{k}": value for name, value in result.items()}


def mean(values):
    return sum(values) / len(values)


@given(st.data())
@settings(deadline=None)
def test_every_metric_is_its_definition_whatever_the_batches(data):
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    every = range(len(counts))
    rows = data.draw(st.integers(1, 6))
    lists = [data.draw(st.permutations(every)) for _ in range(rows)]
    lists = [row[: data.draw(st.integers(0, len(counts)))] for row in lists]
    targets = data.draw(st.lists(st.sampled_from(every), min_size=rows, max_size=rows))
    sets = data.draw(st.none() | st.lists(st.sets(st.integers(0, 3)), min_size=len(counts), max_size=len(counts)))
    ks = data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=3, unique=True))
    numbers = None if sets is None else [np.array(sorted(each), np.int64) for each in sets]
    found = ListMetrics(np.array(counts), ks, numbers)
    wide = min(max(ks), len(counts))
    padded = np.array([[*row, *[-1] * len(counts)][:wide] for row in lists])
    cut = data.draw(st.integers(0, rows))
    for part in (slice(0, cut), slice(cut, rows)):
        found.update(padded[part], np.array(targets[part], np.int64))
    expected = {}
    for k in ks:
        expected |= plain(lists, targets, counts, k, sets)
    assert found.results() == pytest.approx(expected, abs=1e-12)


def test_a_small_case_worked_out_by_hand():
    """Two lists of two of four items, counts 4, 2, 1, 1; the targets stand second and nowhere."""
    found = ListMetrics(np.array([4, 2, 1, 1]), [2], [np.array(each) for each in ([0], [0, 1], [1], [2])])
    found.update(np.array([[0, 2], [0, 1]]), np.array([2, 3]))
    assert found.results() == pytest.approx(
        {
            "precision@2": 1 / 4,
            "map@2": 1 / 4,
            "coverage@2": 3 / 4,
            "gini@2": 3 / 8,  # exposures 0, 1, 1, 2: (-3·0 - 1·1 + 1·1 + 3·2) / (4 · 4)
            "popularity@2": (2.5 + 3) / 2,
            "novelty@2": ((1 + 3) / 2 + (1 + 2) / 2) / 2,  # of 8 interactions
            "serendipity@2": 1 / 2,  # item 2 is found, and the two most popular are 0 and 1
            "diversity@2": (1 + 1 / 2) / 2,
        }
    )


def test_no_lists_and_no_cut_offs_are_refused():
    with pytest.raises(ValueError, match="no row was evaluated"):
        ListMetrics(np.array([1]), [1]).results()
    with pytest.raises(ValueError, match=r"ks must be positive, one at least; found \[0\]"):
        ListMetrics(np.array([1]), [0])
