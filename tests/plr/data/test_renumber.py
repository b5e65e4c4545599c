import pytest

from plr.data import prepare
from plr.data.renumber import renumber
from plr.errors import DataError


def rows_in_ids(dataset, split):
    """Every row as (user, history, target) in external ids."""
    rows = dataset.rows(split, 50)
    out = set()
    for number in range(len(rows)):
        start, length = int(rows.starts[number]), int(rows.lengths[number])
        ids = [dataset.item_ids[item] for item in dataset.items[start : start + length + 1].tolist()]
        out.add((dataset.user_ids[int(rows.users[number])], tuple(ids[:-1]), ids[-1]))
    return out


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("u1 a b x c d\nu2 x a b c x\nu3 x y a\nu4 b c d a\n")
    return prepare(path)


def test_known_items_keep_their_rows_in_other_numbers(dataset):
    ids = ["d", "x", "c", "b", "y", "a", "never"]
    moved = renumber(dataset, ids)
    assert moved.num_items == 7
    for split in ("train", "valid", "test"):
        assert rows_in_ids(moved, split) == rows_in_ids(dataset, split)


def test_unknown_items_leave_histories_and_their_rows(dataset):
    moved = renumber(dataset, ["a", "b", "c", "d"])
    # u2's test target x is unknown; u3's history x y is, so that nothing is left to rank a from.
    assert rows_in_ids(moved, "test") == {("u1", ("a", "b", "c"), "d"), ("u4", ("b", "c", "d"), "a")}
    # u3's validation target y is unknown.
    valid = {(user, target) for user, _, target in rows_in_ids(moved, "valid")}
    assert valid == {("u1", "c"), ("u2", "c"), ("u4", "d")}
    assert moved.report["unknown_items"] == {"interactions": 5, "rows": {"train": 2, "valid": 1, "test": 2}}


def test_strangers_only_are_refused(dataset):
    with pytest.raises(DataError, match="none of the 6 items"):
        renumber(dataset, ["other"])
