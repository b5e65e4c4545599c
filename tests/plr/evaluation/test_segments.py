"""Metrics by segment and among sampled items against definitions a row at a time."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.evaluation import (
    Ranking,
    history_labels,
    metrics,
    novelty_labels,
    popularity_labels,
    sampled_ranks,
    segment_metrics,
)

COUNTS = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(COUNTS, st.data())
def test_popularity_is_cut_by_the_share_of_interactions_with_more_popular_items(counts, data):
    targets = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=9))
    expected = []
    for target in targets:
        more, total = sum(count for count in counts if count > counts[target]), sum(counts)
        head, mid = 3 * more < total, 3 * more < 2 * total
        expected.append("tail" if counts[target] == 0 or not mid else "head" if head else "mid")
    labels = popularity_labels(np.array(counts), np.array(targets))
    assert [labels.names[each] for each in labels.of_rows] == expected
    known = novelty_labels(np.array(counts), np.array(targets))
    assert [known.names[each] for each in known.of_rows] == ["known" if counts[each] else "new" for each in targets]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.none() | st.sets(st.integers(1, 30), min_size=1))
def test_every_history_length_is_in_the_segment_that_names_it(lengths, edges):
    labels = history_labels(np.array(lengths), None if edges is None else sorted(edges))
    for length, number in zip(lengths, labels.of_rows, strict=True):
        first, _, last = labels.names[number].removesuffix(" and more").partition("-")
        assert int(first) <= length
        if not labels.names[number].endswith("more"):
            assert length <= int(last or first)
    if edges is None and len(set(lengths)) >= 4 and len(set(lengths)) == len(lengths):
        assert len(labels.names) == 4


@pytest.mark.parametrize("edges", [[], [0, 3], [5, 5], [7, 2], [3, 10**20], [1.5], ["3"]])
def test_edges_that_do_not_ascend_are_refused(edges):
    with pytest.raises(ValueError, match="ascending whole numbers from 1; found"):
        history_labels(np.array([1, 2]), edges)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 15), st.integers(0, 2)), min_size=1, max_size=15))
@settings(deadline=None)
def test_a_segment_has_the_metrics_of_its_rows_and_the_interval_of_its_users(rows):
    users, ranks, parts = (np.array(column) for column in zip(*rows, strict=True))
    ranking = Ranking(torch.from_numpy(users), torch.zeros(len(rows), dtype=torch.int64), torch.from_numpy(ranks / 1.0))
    labels = history_labels(parts + 1, [1, 2])
    segments = {segment.name: segment for segment in segment_metrics(ranking, labels, [3, 5])}
    assert sum(segment.rows for segment in segments.values()) == len(rows)
    for part, name in enumerate(["1", "2", "3 and more"]):
        own = [(user, rank) for user, rank, each in rows if each == part]
        assert (name in segments) == bool(own)
        if not own:
            continue
        segment = segments[name]
        expected = metrics([rank for _, rank in own], [3, 5])
        assert segment.metrics == pytest.approx({name: expected[name] for name in segment.metrics}, abs=1e-12)
        mean, sums = expected["recall@3"], {}
        for user, rank in own:
            sums[user] = sums.get(user, 0) + (rank <= 3) - mean
        if len(sums) < 2:
            assert segment.intervals == {}
            continue
        error = math.sqrt(len(sums) / (len(sums) - 1) * sum(each**2 for each in sums.values())) / len(own)
        low, high = max(0, mean - 1.959964 * error), min(1, mean + 1.959964 * error)
        assert segment.intervals["recall@3"] == pytest.approx((low, high), abs=1e-6)


def test_sampled_ranks_have_the_distribution_of_scoring_a_sample():
    scores, target, sampled, draws = [5, 4, 3, 3, 3, 2, 1], 3, 3, 40_000
    others = scores[:2] + scores[3:]  # the target is one of the three items with score 3
    exact = {}
    for chosen in combinations(others, sampled):
        rank = 1 + sum(each > target for each in chosen) + sum(each == target for each in chosen) / 2
        exact[rank] = exact.get(rank, 0) + 1 / math.comb(len(others), sampled)
    same = np.ones(draws, np.int64)
    ranks = sampled_ranks(2 * same, 2 * same, 6 * same, sampled, seed=3)
    assert set(ranks) == set(exact)
    for rank, share in exact.items():
        assert abs((ranks == rank).mean() - share) < 5 * math.sqrt(share * (1 - share) / draws)
    assert (ranks == sampled_ranks(2 * same, 2 * same, 6 * same, sampled, seed=3)).all()


def test_a_sample_of_all_is_the_whole_ranking():
    greater, equal, others = np.array([0, 3, 6]), np.array([2, 0, 0]), np.array([6, 6, 6])
    assert sampled_ranks(greater, equal, others, 100).tolist() == [2, 4, 7]


def test_samples_and_counts_that_do_not_fit_are_refused():
    one = np.array([1])
    with pytest.raises(ValueError, match="sampled must be at least 1; found 0"):
        sampled_ranks(one, one, 3 * one, 0)
    with pytest.raises(ValueError, match="more than the other items"):
        sampled_ranks(2 * one, one, 2 * one, 5)
