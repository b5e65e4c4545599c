"""Batches: every row once, little padding, the same order everywhere."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import Batch, LengthGroupedBatches, Share, batching
from plr.data.rows import Rows
from plr.evaluation.batches import share_of_order

# (grouped, filled by targets) -> what the order of the rows hashes to.
ORDERS = {
    (False, False): "12953369e7fc5ea6",
    (False, True): "72008344da95f900",
    (True, False): "46f1b164b34af00e",
    (True, True): "f5d5e6bec6f08ead",
}


def lengths_like_real_data(rows: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.empty(rows).exponential_(1 / 8, generator=random).long().clamp(1, 50)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 400),
    batch_size=st.integers(1, 60),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_row_exactly_once(rows, batch_size, shuffle, epoch):
    plan = LengthGroupedBatches(lengths_like_real_data(rows), batch_size, shuffle=shuffle, seed=3)
    plan.set_epoch(epoch)
    batches = list(plan)
    assert len(batches) == len(plan)
    sizes = {len(batch) for batch in batches}
    assert all(1 <= size <= batch_size for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    everything = torch.cat([torch.empty(0, dtype=torch.int64), *batches])
    assert everything.dtype == torch.int64
    assert torch.equal(everything.sort().values, torch.arange(rows))


def test_little_is_padded():
    lengths = lengths_like_real_data(50_000)
    for shuffle, most in ((True, 0.08), (False, 0.02)):
        batches = LengthGroupedBatches(lengths, 256, shuffle=shuffle)
        cells = sum(len(index) * int(lengths[index].max()) for index in batches)
        assert 1 - int(lengths.sum()) / cells < most


@given(rows=st.integers(1, 100), batch_size=st.integers(1, 40), world_size=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_an_evaluations_shares_have_every_row_once(rows, batch_size, world_size):
    lengths = lengths_like_real_data(rows)
    held_out = Rows(torch.zeros(1), torch.zeros(rows, dtype=torch.int64), lengths, torch.zeros(1), False)
    shares = [share_of_order(held_out, batch_size, rank, world_size) for rank in range(world_size)]
    assert all(1 <= len(index) <= batch_size for share in shares for index in share)
    assert torch.equal(torch.cat([torch.cat(share) for share in shares if share]).sort().values, torch.arange(rows))
    counts = [sum(len(index) for index in share) for share in shares]
    assert max(counts) - min(counts) <= len(LengthGroupedBatches(lengths, batch_size * world_size, shuffle=False))


@pytest.mark.parametrize("every_position", [True, False])
@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_are_the_batch(world_size, every_position):
    rows = Rows(
        items=torch.arange(60) % 7,
        stops=torch.tensor([3, 9, 20, 33, 59])[: 5 if every_position else 3],
        lengths=torch.tensor([3, 5, 9, 1, 20])[: 5 if every_position else 3],
        offsets=torch.tensor([0, 4, 10, 21, 34, 60]),
        every_position=every_position,
    )
    index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    targets = int(rows.target_counts()[index].sum())
    shares = [Share(rows.batch, index, targets, rank, world_size) for rank in range(world_size)]
    whole = rows.batch(index)
    numbers = [share.numbers() for share in shares]
    assert torch.equal(torch.cat(numbers).sort().values, torch.arange(targets))
    for rank, (share, own) in enumerate(zip(shares, numbers, strict=True)):
        batch = share.own()
        assert batch.share is share
        assert batch.to("cpu").share is share
        assert batch.users.tolist() == whole.users[share.rows].tolist()
        assert share.idle == (rank >= len(index)) == (not len(own))
        if not share.idle:
            assert share.rows.tolist() == list(range(rank, len(index), world_size))
            assert torch.equal(whole.each_target[own], batch.each_target)
            if every_position:
                row_by_row = whole.targets[whole.targets >= 0]
                assert torch.equal(row_by_row[share.numbers(in_rows=True)], batch.targets[batch.targets >= 0])
        assert share.group_sizes(batch) == (whole.counted.sizes if every_position else (targets,))
        share.seed(5)
        assert torch.rand(3, generator=share.generator("cpu")).tolist() == torch.rand(
            3, generator=torch.Generator().manual_seed(5)
        ).tolist()


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


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_without_a_window_the_order_is_that_of_earlier_versions(grouped, filled):
    """Runs resume in it."""
    lengths = lengths_like_real_data(500)
    plan = LengthGroupedBatches(lengths, 7, shuffle=True, seed=3, grouped=grouped, counts=lengths if filled else None)
    plan.set_epoch(2)
    found = hashlib.sha256(torch.cat(list(plan)).numpy().astype("<i8").tobytes()).hexdigest()
    assert found[:16] == ORDERS[grouped, filled]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    batch_size=st.integers(1, 60),
    window=st.integers(1, 450),
    grouped=st.booleans(),
    filled=st.booleans(),
)
def test_with_a_window_every_row_comes_once_and_a_window_at_a_time(rows, batch_size, window, grouped, filled):
    lengths = lengths_like_real_data(rows)
    counts = lengths if filled else None

    def batches_of(epoch, window=window):
        plan = LengthGroupedBatches(
            lengths, batch_size, shuffle=True, seed=3, grouped=grouped, counts=counts, window=window
        )
        plan.set_epoch(epoch)
        batches = list(plan)
        assert len(batches) == len(plan)
        return [batch.tolist() for batch in batches]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_BLOCK", 8)
        batches, again = batches_of(1), batches_of(1)
    assert batches == again
    assert all(batches)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    if window >= rows:
        assert batches == batches_of(1, window=0)
        return
    if not filled:
        assert {len(batch) for batch in batches} <= {rows // len(batches), -(-rows // len(batches))}
    # What is cut into batches at a time is a window and the rows that filled no batch before, fewer than one has; those
    # of a block come in one such part or in two that follow each other.
    order = [row // 8 for batch in batches for row in batch]
    held = 8 * -(-window // 8)
    longest = max(len(batch) for batch in batches)
    for block in set(order):
        places = [place for place, other in enumerate(order) if other == block]
        assert places[-1] - places[0] < 2 * (held + longest)


def test_windows_are_of_blocks_drawn_at_random(monkeypatch):
    monkeypatch.setattr(batching, "_BLOCK", 64)
    plan = LengthGroupedBatches(lengths_like_real_data(64 * 100), 32, shuffle=True, window=64 * 10)
    first = torch.cat(list(plan)[:20])  # one window: 10 of the 100 blocks, each of them whole
    blocks, sizes = (first // 64).unique(return_counts=True)
    assert sizes.tolist() == [64] * 10
    assert blocks.tolist() != list(range(10))
    assert (first.diff() == 1).float().mean() < 0.1
    plan.set_epoch(1)
    assert (torch.cat(list(plan)[:20]) // 64).unique().tolist() != blocks.tolist()


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


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_filled_by_targets_have_about_as_many(grouped):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 51, (5000,), generator=generator)
    lengths = counts + torch.randint(0, 3, (5000,), generator=generator)

    def batches_of(epoch):
        plan = LengthGroupedBatches(lengths, 256, shuffle=True, grouped=grouped, counts=counts)
        plan.set_epoch(epoch)
        return list(plan)

    batches = batches_of(3)
    assert len(batches) == -(-int(counts.sum()) // 256)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(5000))
    sums = torch.tensor([int(counts[batch].sum()) for batch in batches])
    mean = counts.sum() / len(batches)
    assert mean <= 256
    # Each end of a batch is within half a row of where it should be; the parts that are cut have about equal sums.
    assert ((sums - mean).abs() <= 50 + 0.1 * mean).all()
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in batches_of(3)]
    assert batches[0].tolist() != batches_of(4)[0].tolist()
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
        ({"seed": -1}, "seed"),
        ({"window": -1}, "window"),
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
