"""The generated data: reproducible, of the promised size, and with something in it to learn."""

from __future__ import annotations

import hashlib

import polars as pl
import pytest
import torch

from plr.data import prepare
from plr.prepare.synthetic import generate


def test_same_bytes_for_the_same_arguments(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(tmp_path / f"{name}.csv", users=50, items=100, interests=5, seed=seed)
    a, b, c = ((tmp_path / f"{name}.csv").read_bytes() for name in "abc")
    assert a == b != c
    assert hashlib.sha256(a).hexdigest() == "f38d6b2190fba10b1714382c36e2a3d9140c3b272bf487025379d69f111cb51f"


def test_the_bytes_do_not_depend_on_how_many_numbers_are_drawn_at_a_time(tmp_path, monkeypatch):
    for name, numbers in (("at-once", 1 << 22), ("a-few", 100)):
        monkeypatch.setattr("plr.prepare.synthetic._NUMBERS_AT_A_TIME", numbers)
        generate(tmp_path / name, users=50, items=100, interests=7, seed=2)
    assert (tmp_path / "at-once").read_bytes() == (tmp_path / "a-few").read_bytes()


def test_size_and_layout(tmp_path):
    path = tmp_path / "data.csv"
    generate(path)
    frame = pl.read_csv(path)
    assert frame.columns == ["user", "item", "timestamp"]
    assert (frame["user"].n_unique(), frame["item"].n_unique()) == (2000, 600)
    assert 15 <= frame.height / 2000 <= 20
    assert frame["timestamp"].is_sorted()
    assert [child.name for child in tmp_path.iterdir()] == ["data.csv"]
    dataset = prepare(path)
    assert dataset.split == "time"
    assert min(dataset.report["rows"].values()) > 1000


def test_the_last_items_tell_more_than_the_last_and_than_popularity(tmp_path):
    """Recall@10 by counted transitions: from the last item, and from the last four together."""
    path = tmp_path / "data.csv"
    generate(path)
    dataset = prepare(path)
    train = dataset.rows("train", 4)
    rows = train.batch(torch.arange(len(train)))
    counts = torch.zeros(dataset.num_items, dataset.num_items)
    real = torch.arange(rows.item_ids.shape[1]) < rows.lengths[:, None]
    targets = rows.targets[:, None].expand_as(real)
    counts.index_put_((rows.item_ids[real], targets[real]), torch.ones(int(real.sum())), accumulate=True)

    test = dataset.rows("test", 4)
    batch = test.batch(torch.arange(len(test)))
    real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
    from_each = counts[batch.item_ids] * real[:, :, None]
    last = counts[batch.item_ids[torch.arange(len(batch)), batch.lengths - 1]]

    def recall(scores: torch.Tensor) -> float:
        return (scores.topk(10).indices == batch.targets[:, None]).any(1).float().mean().item()

    popular = recall(dataset.popularity().float().expand(len(batch), -1))
    assert popular < 0.06
    assert recall(last) > 5 * popular
    assert recall(from_each.sum(1)) > 1.1 * recall(last)


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="4 items per interest"):
        generate(tmp_path / "data.csv", items=20, interests=12)
