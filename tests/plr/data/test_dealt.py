"""Windows of long histories that overlap, and sequence rows that have a few of their targets at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import DealtRows, SequenceDataset, prepare
from plr.data.rows import IGNORED

ALL, SOME = (True,), (True, False, True, True, False)


def dataset(folder, lengths, targets=(True,)) -> SequenceDataset:
    """Users of so many items, all different: item numbers tell who, and when.

    targets: which training items are targets, over and over; the others stay in the histories, as low-rated ones do.
    """
    path = folder / "data.txt"
    lines = [[f"u{user}", *(f"{user}.{item:03}" for item in range(count))] for user, count in enumerate(lengths)]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    data = prepare(path)
    kept = torch.tensor(targets).repeat(len(data.roles))[: len(data.roles)]
    return replace(data, roles=data.roles.masked_fill((data.roles == 1) & ~kept, 0))


def counted(rows, batch):
    """{(user, flat position of a target): how many inputs are before it} of a batch of rows, each once."""
    found = {}
    for row, position in (batch.targets != IGNORED).nonzero().tolist():
        user, target = int(batch.users[row]), int(batch.targets[row, position])
        assert (user, target) not in found
        found[user, target] = position + 1
        before = batch.item_ids[row, : position + 1]
        own = rows.items[rows.offsets[user] : rows.offsets[user + 1]].long()
        place = int((own == target).nonzero())
        assert torch.equal(own[place - position - 1 : place], before)
    return found


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 40), max_size=4).map(lambda lengths: [4, *lengths]),
    max_length=st.integers(1, 12),
    part=st.floats(0, 1),
    targets=st.sampled_from([ALL, SOME]),
)
def test_windows_have_every_target_once_with_its_context(tmp_path_factory, lengths, max_length, part, targets):
    min_context = 1 + round(part * (max_length - 1))
    data = dataset(tmp_path_factory.mktemp("windows"), lengths, targets)
    rows = data.rows("train", max_length, "sequence", min_context=min_context)
    if not len(rows):
        return
    batch = rows.batch(torch.arange(len(rows)))
    found = counted(rows, batch)
    expected = {}
    for position in data.target_positions("train").tolist():
        user = int(torch.searchsorted(data.offsets, position, right=True)) - 1
        expected[user, int(data.items[position])] = position - int(data.offsets[user])
    assert found.keys() == expected.keys()
    for target, context in found.items():
        assert min(expected[target], min_context) <= context <= min(expected[target], max_length)
    assert torch.equal(rows.target_counts(), (batch.targets != IGNORED).sum(dim=1))
    assert (rows.target_counts() > 0).all()
    some = rows.take(torch.arange(len(rows)).flip(0))
    assert torch.equal(some.batch(torch.tensor([0])).targets, rows.batch(torch.tensor([len(rows) - 1])).targets)


def test_with_the_largest_context_no_target_sees_less_than_its_prefix_row(tmp_path):
    data = dataset(tmp_path, [23, 4, 9])
    rows = data.rows("train", 6, "sequence", min_context=6)
    found = counted(rows, rows.batch(torch.arange(len(rows))))
    alone = data.rows("train", 6)
    batch = alone.batch(torch.arange(len(alone)))
    targets = zip(batch.users.tolist(), batch.targets.tolist(), strict=True)
    assert found == dict(zip(targets, batch.lengths.tolist(), strict=True))
    assert len(rows) < len(alone)


def test_windows_of_short_histories_do_not_depend_on_the_context(tmp_path):
    data = dataset(tmp_path, [5, 7, 3])
    one, two = (data.rows("train", 10, "sequence", min_context=context) for context in (1, 8))
    index = torch.arange(len(one))
    assert torch.equal(one.batch(index).targets, two.batch(index).targets)
    assert torch.equal(one.batch(index).item_ids, two.batch(index).item_ids)


@pytest.mark.parametrize("min_context", [0, 6])
def test_a_context_that_cannot_be(min_context, tmp_path):
    data = dataset(tmp_path, [5])
    with pytest.raises(ValueError, match=rf"min_context must be in 1..max_length, 1..5; found {min_context}"):
        data.rows("train", 5, "sequence", min_context=min_context)


@pytest.mark.parametrize("targets", [ALL, SOME])
@pytest.mark.parametrize("per_row", [1, 2, 3, 100])
def test_every_epoch_deals_each_target_once(per_row, targets, tmp_path):
    rows = dataset(tmp_path, [23, 4, 9, 12], targets).rows("train", 8, "sequence", min_context=3)
    dealt = DealtRows(rows, per_row, seed=5)
    everything = counted(rows, rows.batch(torch.arange(len(rows))))
    parts = [-(-count // per_row) for count in rows.target_counts().tolist()]
    assert len(dealt) == len(dealt.lengths) == sum(parts)
    epochs = []
    for epoch in range(2):
        batch = dealt.batch(torch.arange(len(dealt)), epoch)
        assert counted(rows, batch) == everything
        assert torch.equal(dealt.target_counts(), (batch.targets != IGNORED).sum(dim=1))
        sizes = (batch.targets != IGNORED).sum(dim=1)
        for own in sizes.split(parts):
            assert own.max() <= per_row
            assert own.max() - own.min() <= 1
        place = torch.arange(batch.targets.shape[1])
        assert torch.equal(batch.lengths, 1 + ((batch.targets != IGNORED) * place).amax(dim=1))
        assert not batch.item_ids[place >= batch.lengths[:, None]].any()
        assert (batch.lengths <= dealt.lengths).all()
        epochs.append(batch)
    if max(parts) > 1:
        assert not torch.equal(epochs[0].counted.targets, epochs[1].counted.targets)
    if per_row == 1:
        assert (epochs[0].lengths == torch.tensor([place + 1 for place in epochs[0].counted.positions[:, 0]])).all()


def test_what_is_dealt_depends_on_seed_and_epoch_not_on_the_batch(tmp_path):
    rows = dataset(tmp_path, [23, 4, 9, 12]).rows("train", 8, "sequence")
    whole = DealtRows(rows, 2, seed=5).batch(torch.arange(8), 3)
    one = DealtRows(rows, 2, seed=5).batch(torch.tensor([6, 2, 6]), 3)
    for row, place in enumerate((6, 2, 6)):
        real = whole.targets[place] != IGNORED
        assert torch.equal(one.targets[row][one.targets[row] != IGNORED], whole.targets[place][real])
    others = [DealtRows(rows, 2, seed=seed).batch(torch.arange(8), epoch) for seed, epoch in ((5, 4), (6, 3))]
    assert all(not torch.equal(other.counted.targets, whole.counted.targets) for other in others)
    assert DealtRows(rows, 2, seed=5).batch(torch.empty(0, dtype=torch.int64), 0).item_ids.shape == (0, 0)


def test_every_target_is_as_likely_beside_every_other(tmp_path):
    rows = dataset(tmp_path, [8]).rows("train", 8, "sequence")  # 5 targets, in rows of 2, 2 and 1
    dealt = DealtRows(rows, 2, seed=0)
    pairs: Counter = Counter()
    epochs = 3000
    for epoch in range(epochs):
        for row in dealt.batch(torch.arange(3), epoch).targets.tolist():
            pairs[tuple(target for target in row if target != IGNORED)] += 1
    alone = [pairs[key] for key in pairs if len(key) == 1]
    beside = [pairs[key] for key in pairs if len(key) == 2]
    assert (len(alone), len(beside)) == (5, 10)
    # Binomial with p = 1/5 each: five standard deviations.
    assert all(abs(count - epochs / 5) < 5 * (epochs * 0.2 * 0.8) ** 0.5 for count in [*alone, *beside])


def test_what_cannot_be_dealt(tmp_path):
    data = dataset(tmp_path, [5])
    with pytest.raises(ValueError, match="these have one target each"):
        DealtRows(data.rows("train", 5), 2, seed=0)
    with pytest.raises(ValueError, match="targets_per_row must be at least 1; found 0"):
        DealtRows(data.rows("train", 5, "sequence"), 0, seed=0)
