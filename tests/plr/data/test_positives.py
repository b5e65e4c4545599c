import time
from collections import Counter

import pytest
import torch

from plr.data import Rows, SameTargetPositives, prepare


def rows_with_targets(targets):
    """One row of one item for each target."""
    items = torch.stack([torch.zeros(len(targets), dtype=torch.int64), torch.as_tensor(targets)], dim=1).flatten()
    offsets = torch.arange(len(targets) + 1) * 2
    stops = offsets[:-1] + 1
    return Rows(items, stops, torch.ones_like(stops), offsets, every_position=False)


def test_positives_have_the_same_target_and_are_other_rows(small_data):
    rows = prepare(small_data).rows("train", 10)
    index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    positives = SameTargetPositives(rows, seed=0).draw(index, epoch=0)
    assert torch.equal(rows.batch(index).targets, rows.batch(positives).targets)
    assert (positives != index).all()


def test_a_row_without_another_is_its_own_positive():
    positives = SameTargetPositives(rows_with_targets([5, 3, 5, 9]), seed=0)
    for epoch in range(5):
        assert positives.draw(torch.tensor([0, 1, 2, 3]), epoch).tolist() == [2, 1, 0, 3]
    assert positives.draw(torch.tensor([3]), 0).tolist() == [3]


def test_every_other_row_is_equally_likely():
    rows = rows_with_targets([1, 0, 1, 1, 0, 1])
    positives = SameTargetPositives(rows, seed=1)
    drawn = Counter(int(positives.draw(torch.tensor([2]), epoch)) for epoch in range(6000))
    assert drawn.keys() == {0, 3, 5}
    # 2000 each, with a standard deviation of 37.
    assert all(abs(count - 2000) < 185 for count in drawn.values()), drawn


def test_draws_depend_on_seed_epoch_and_rows_alone():
    rows = rows_with_targets([0] * 200)
    index = torch.arange(100)
    first = SameTargetPositives(rows, seed=0)
    expected = first.draw(index, 3)
    torch.manual_seed(99)
    first.draw(torch.arange(100, 200), 3)
    assert torch.equal(first.draw(index, 3), expected)
    assert torch.equal(SameTargetPositives(rows, seed=0).draw(index, 3), expected)
    assert not torch.equal(first.draw(index, 4), expected)
    assert not torch.equal(SameTargetPositives(rows, seed=1).draw(index, 3), expected)


def test_rows_with_many_targets_are_refused(small_data):
    with pytest.raises(ValueError, match="every position have no positives"):
        SameTargetPositives(prepare(small_data).rows("train", 10, "sequence"), seed=0)


def test_a_million_rows_take_a_moment():
    rows = rows_with_targets(torch.randint(0, 50_000, (1_000_000,), generator=torch.Generator().manual_seed(0)))
    start = time.perf_counter()
    positives = SameTargetPositives(rows, seed=0)
    positives.draw(torch.arange(2048), 0)
    assert time.perf_counter() - start < 10  # a sort of a million numbers, with room for a busy machine
