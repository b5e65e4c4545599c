"""Rows cut into buckets of like length: which cuts, and that the outcome is that of one pass."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import CountedTargets
from plr.models.methods import history_buckets
from plr.models.methods.history_buckets import cut_lengths, in_buckets


def cost(lengths, cuts):
    longest = np.array(cuts)[np.searchsorted(cuts, lengths)]
    return longest.sum() + history_buckets._PASS * len(cuts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.sampled_from([1, 9, 128]))
def test_cuts_are_the_cheapest(lengths, one_pass):
    lengths = np.array(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_buckets, "_PASS", one_pass)
        cuts = cut_lengths(lengths)
        *others, longest = np.unique(lengths).tolist()
        assert cuts[-1] == longest
        few = others if len(others) <= 10 else others[:: len(others) // 10 + 1]
        all_cuts = ([*chosen, longest] for count in range(len(few) + 1) for chosen in combinations(few, count))
        assert cost(lengths, cuts) <= min(cost(lengths, each) for each in all_cuts)


def test_rows_of_one_length_and_other_devices_are_one_pass():
    assert cut_lengths(np.full(100, 7)) == [7]
    assert history_buckets._cuts_worthwhile(torch.full((100,), 7), 7) is None
    assert history_buckets._cuts_worthwhile(torch.full((100,), 7), 50) == [7]
    assert history_buckets._cuts_worthwhile(torch.full((100,), 7, device="meta"), 50) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=12), st.sampled_from([1, 2])
)
def test_buckets_together_are_one_pass(rows, views):
    """Each history's outcome is a function of its row, its end and its view; rows without a target are among them."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    item_ids, targets = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
    for number, row in enumerate(rows):
        item_ids[number, : len(row)] = 100 * number + torch.arange(len(row))
        for place in (place for place, is_target in enumerate(row) if is_target):
            targets[number, place] = 1000 + place
    counted, calls = CountedTargets.of(targets), []

    def compute(own_ids, lengths, counted, rows):
        assert rows is None or torch.equal(own_ids, item_ids[rows, : own_ids.shape[1]].repeat(views, 1))
        assert own_ids.shape[0] == lengths.shape[0] == counted.positions.shape[0]
        assert own_ids.shape[1] >= lengths.max()
        assert sum(counted.sizes) == len(counted.index)
        calls.append(own_ids.shape)
        half = torch.arange(len(own_ids)) // (len(own_ids) // views)  # which view
        ends = (own_ids.gather(1, counted.positions) + 10_000 * half[:, None]).flatten()[counted.index]
        return ends, torch.stack([ends, counted.targets], dim=1)

    expected = compute(item_ids.repeat(views, 1), lengths.repeat(views), counted.repeat(views), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_buckets, "_PASS", 1)
        calls.clear()
        found = in_buckets(item_ids, lengths, counted, compute, views)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
        if counted.targets.numel():
            assert len(calls) <= len(cut_lengths(lengths.numpy()))


def test_counted_targets_of_rows():
    targets = torch.tensor([[1, 2, 3], [-100, 4, -100], [-100, -100, -100], [5, -100, 6]])
    counted = CountedTargets.of(targets)
    own, places = counted.of_rows(torch.tensor([1, 2, 3]))
    expected = CountedTargets.of(targets[1:])
    assert torch.equal(own.positions, expected.positions)
    assert torch.equal(own.index, expected.index)
    assert (own.targets.tolist(), own.sizes) == (expected.targets.tolist(), expected.sizes)
    assert torch.equal(counted.targets[places], own.targets)
    none, nowhere = counted.of_rows(torch.tensor([2]))
    assert (len(none.targets), len(nowhere), none.sizes) == (0, 0, ())
