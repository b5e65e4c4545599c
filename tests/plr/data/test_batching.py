"""Batches: every row once, little padding, the same order everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import Batch, LengthGroupedBatches
from plr.data.rows import Rows


def lengths_like_real_data(rows: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.empty(rows).exponential_(1 / 8, generator=random).long().clamp(1, 50)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 400),
    batch_size=st.integers(1, 60),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_row_exactly_once_over_all_ranks(rows, batch_size, world_size, shuffle, epoch):
    if 0 < rows < world_size:
        return
    taken = []
    for rank in range(world_size):
        batches = LengthGroupedBatches(
            lengths_like_real_data(rows),
            batch_size,
            shuffle=shuffle,
            seed=3,
            rank=rank,
            world_size=world_size,
        )
        batches.set_epoch(epoch)
        mine = list(batches)
        assert len(mine) == len(batches)
        most = batch_size + (batch_size == 1 and rows % world_size > 0)
        assert all(1 <= len(batch) <= most for batch in mine)
        taken += mine
    sizes = {len(batch) for batch in taken}
    assert not sizes or max(sizes) - min(sizes) <= 1
    everything = torch.cat([torch.empty(0, dtype=torch.int64), *taken])
    assert everything.dtype == torch.int64
    assert torch.equal(everything.sort().values, torch.arange(rows))


@pytest.mark.parametrize("world_size", [1, 4])
def test_little_is_padded(world_size):
    lengths = lengths_like_real_data(50_000)
    for shuffle, most in ((True, 0.08), (False, 0.02)):
        cells = 0
        for rank in range(world_size):
            batches = LengthGroupedBatches(
                lengths, 256 // world_size, shuffle=shuffle, rank=rank, world_size=world_size
            )
            cells += sum(len(index) * int(lengths[index].max()) for index in batches)
        assert 1 - int(lengths.sum()) / cells < most


def test_ranks_work_on_similar_lengths_at_a_time():
    lengths = lengths_like_real_data(50_000)
    ranks = [list(LengthGroupedBatches(lengths, 64, shuffle=True, rank=r, world_size=4)) for r in range(4)]
    longest = torch.tensor([[int(lengths[index].max()) for index in batches] for batches in ranks])
    spread = (longest.amax(0) - longest.amin(0)).float()
    assert spread.mean() < 3


def test_order_is_a_function_of_seed_and_epoch():
    lengths = lengths_like_real_data(5000)

    def order(seed: int, epoch: int) -> list[int]:
        batches = LengthGroupedBatches(lengths, 32, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        first, again = torch.cat(list(batches)), torch.cat(list(batches))
        assert torch.equal(first, again)
        return first.tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_shuffled_batches_come_in_no_order_of_length():
    lengths = lengths_like_real_data(50_000)
    means = torch.tensor([lengths[index].float().mean() for index in LengthGroupedBatches(lengths, 64, shuffle=True)])
    place = torch.arange(len(means)).float()
    assert torch.corrcoef(torch.stack([means, place]))[0, 1].abs() < 0.2


def test_batches_that_are_not_grouped_mix_lengths():
    """A batch's mean length is then that of a random sample: its spread over batches is σ / √64."""
    lengths = lengths_like_real_data(50_000)
    spread = {}
    for grouped in (True, False):
        batches = list(LengthGroupedBatches(lengths, 64, shuffle=True, grouped=grouped))
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(50_000))
        spread[grouped] = torch.stack([lengths[index].double().mean() for index in batches]).std()
    expected = lengths.double().std() / 8
    assert abs(spread[False] / expected - 1) < 0.1  # 782 batches: the standard error is 2.5 %
    assert spread[True] > 4 * expected


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("grouped", [True, False])
def test_batches_filled_by_targets_have_about_as_many(grouped, world_size):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 51, (5000,), generator=generator)
    lengths = counts + torch.randint(0, 3, (5000,), generator=generator)

    def plans(epoch):
        for rank in range(world_size):
            plan = LengthGroupedBatches(
                lengths, 256, shuffle=True, grouped=grouped, counts=counts, rank=rank, world_size=world_size
            )
            plan.set_epoch(epoch)
            yield list(plan)

    ranks = list(plans(3))
    steps = -(-int(counts.sum()) // (256 * world_size))
    assert [len(batches) for batches in ranks] == [steps] * world_size
    batches = [batch for rank in ranks for batch in rank]
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(5000))
    sums = torch.tensor([int(counts[batch].sum()) for batch in batches])
    mean = counts.sum() / (steps * world_size)
    assert mean <= 256
    # Each end of a batch is within half a row of where it should be; the parts that are cut have about equal sums.
    assert ((sums - mean).abs() <= 50 + 0.1 * mean).all()
    assert [batch.tolist() for batch in batches] == [batch.tolist() for rank in plans(3) for batch in rank]
    assert batches[0].tolist() != next(plans(4))[0].tolist()
    if grouped:
        ends = [(int(lengths[batch].min()), int(lengths[batch].max())) for batch in batches]
        assert sum(most - least > 10 for least, most in ends) < len(ends) / 20
        one = next(batch for batch in batches if len(batch) > 20)
        same = lengths[one] == lengths[one][0]
        assert torch.equal(counts[one][same], counts[one][same].sort().values)  # like numbers of targets together


@pytest.mark.parametrize("counts", [[1, 100, 1, 1], [100, 1, 1, 1], [1, 1, 1, 100], [5, 5, 5, 5], [7]])
def test_every_batch_filled_by_targets_has_a_row(counts):
    counts = torch.tensor(counts)
    for batch_size in (1, 2, 5, 1000):
        plan = LengthGroupedBatches(counts, batch_size, shuffle=True, counts=counts)
        batches = list(plan)
        assert len(batches) == len(plan) <= len(counts)
        assert all(len(batch) for batch in batches)
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(counts)))


def test_evaluation_begins_with_the_longest():
    lengths = torch.tensor([1, 5, 2, 5, 3])
    assert [index.tolist() for index in LengthGroupedBatches(lengths, 2, shuffle=False)] == [[1], [3, 4], [2, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"world_size": 9}, "8 rows cannot be shared among 9 ranks"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LengthGroupedBatches(torch.ones(8, dtype=torch.int64), **{"batch_size": 2, "shuffle": True, **options})


def test_batch_is_gathered_and_padded():
    rows = Rows(
        items=torch.tensor([7, 8, 9, 5, 6, 4]),
        stops=torch.tensor([2, 2, 5]),
        lengths=torch.tensor([2, 1, 2]),
        offsets=torch.tensor([0, 3, 6]),
        every_position=False,
    )
    batch = rows.batch(torch.tensor([2, 1, 2]))
    assert batch.item_ids.tolist() == [[5, 6], [8, 0], [5, 6]]
    assert batch.lengths.tolist() == [2, 1, 2]
    assert batch.targets.tolist() == [4, 9, 4]
    assert batch.users.tolist() == [1, 0, 1]
    assert (len(rows), len(batch)) == (3, 3)
    assert (rows.starts.tolist(), rows.users.tolist()) == ([0, 1, 3], [0, 0, 1])
    assert rows.batch(torch.tensor([1])).item_ids.tolist() == [[8]]  # as long as its longest row, no longer
    assert rows.batch(torch.empty(0, dtype=torch.int64)).item_ids.shape == (0, 0)


def test_batch_moves_whole():
    tensor = torch.zeros(2, 3, dtype=torch.int64)
    moved = Batch(tensor, tensor[:, 0], tensor, tensor[:, 0]).to("meta")
    assert {getattr(moved, name).device.type for name in ("item_ids", "lengths", "targets", "users")} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning memory needs a GPU")
def test_batch_is_pinned():
    tensor = torch.zeros(2, 3, dtype=torch.int64)
    assert Batch(tensor, tensor[:, 0], tensor, tensor[:, 0]).pin_memory().item_ids.is_pinned()
