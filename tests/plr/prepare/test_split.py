"""Splits and rows: what is a target, what its history may hold, and that nothing is lost or told twice."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plr.data import SequenceDataset, prepare
from plr.errors import DataError
from plr.prepare import blocks
from plr.prepare import split as splitting
from plr.prepare.interactions import Interactions
from plr.prepare.parts import Whole
from plr.prepare.split import default_cuts

INTERACTIONS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=60)


def build(interactions, *, timed: bool, ratings=None, **options) -> SequenceDataset | None:
    """Prepare (user, item, time) triples, rated where ratings are given; None where no training row is left."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "data.csv"
        rows = [f"u{user},i{item}{f',{time}' if timed else ''}" for user, item, time in interactions]
        header = "user,item" + (",timestamp" if timed else "")
        if ratings is not None:
            header += ",rating"
            rows = [f"{row},{rating}" for row, rating in zip(rows, ratings, strict=True)]
        path.write_text("\n".join([header, *rows]) + "\n")
        try:
            return prepare(path, **options)
        except DataError as error:
            if "no training row" not in str(error):
                raise
            return None


def in_time_order(interactions, *, timed: bool) -> dict[str, list[tuple[str, int]]]:
    """Return each user's (item, time) by plain Python."""
    users: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in interactions:
        users.setdefault(f"u{user}", []).append((f"i{item}", time))
    if timed:
        for items in users.values():
            items.sort(key=lambda pair: pair[1])
    return users


def prefix_rows(dataset: SequenceDataset, split: str, max_length: int = 100) -> Counter:
    rows = dataset.rows(split, max_length)
    if not len(rows):
        return Counter()
    batch = rows.batch(torch.arange(len(rows)))
    return Counter(
        (
            dataset.user_ids[user],
            tuple(dataset.item_ids[item] for item in items[:length]),
            dataset.item_ids[target],
        )
        for user, items, length, target in zip(
            batch.users.tolist(),
            batch.item_ids.tolist(),
            batch.lengths.tolist(),
            batch.targets.tolist(),
            strict=True,
        )
    )


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.booleans())
def test_leave_one_out_against_its_definition(interactions, timed):
    expected = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for user, pairs in in_time_order(interactions, timed=timed).items():
        items = [item for item, _ in pairs]
        for place in range(1, len(items)):
            left = len(items) - place
            split = {1: "test", 2: "valid"}.get(left, "train") if len(items) >= 3 else "train"
            expected[split][user, tuple(items[:place]), items[place]] += 1
    dataset = build(interactions, timed=timed, split="leave-one-out")
    if dataset is None:
        assert not expected["train"]
        return
    assert {split: prefix_rows(dataset, split) for split in expected} == expected


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.booleans(), st.integers(1, 4))
def test_leave_k_out_against_its_definition(interactions, timed, k):
    expected = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for user, pairs in in_time_order(interactions, timed=timed).items():
        items = [item for item, _ in pairs]
        for place in range(1, len(items)):
            left = len(items) - place
            held_out = "test" if left <= k else "valid" if left <= 2 * k else "train"
            expected[held_out if len(items) > 2 * k else "train"][user, tuple(items[:place]), items[place]] += 1
    dataset = build(interactions, timed=timed, split="leave-k-out", leave_k=k)
    if dataset is None:
        assert not expected["train"]
        return
    assert {split: prefix_rows(dataset, split) for split in expected} == expected
    if k == 1:
        one = build(interactions, timed=timed, split="leave-one-out")
        for name in ("items", "offsets", "roles", "training_stop"):
            assert torch.equal(getattr(dataset, name), getattr(one, name))


USERS = {"split": "users", "valid_users": 0.3, "test_users": 0.3}


def held_out(user: str, seed: int) -> str:
    """Which part a user belongs to, by the definition in docs/data.md."""
    number = int.from_bytes(hashlib.blake2b(f"{seed}:{user}".encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if number < 0.3 else "valid" if number < 0.6 else "train"


@settings(max_examples=100, deadline=None)
@given(INTERACTIONS, st.booleans(), st.integers(1, 3), st.integers(0, 50))
def test_users_are_held_out_by_the_definition(interactions, timed, k, seed):
    users = in_time_order(interactions, timed=timed)
    part = {user: held_out(user, seed) for user in users}
    seen = {item for user, pairs in users.items() if part[user] == "train" for item, _ in pairs}
    expected = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for user, pairs in users.items():
        items = [item for item, _ in pairs if item in seen]
        for place in range(1, len(items)):
            if part[user] == "train" or len(items) - place <= k:
                expected[part[user]][user, tuple(items[:place]), items[place]] += 1
    dataset = build(interactions, timed=timed, **USERS, split_seed=seed, leave_k=k)
    if dataset is None:
        assert not expected["train"]
        return
    assert {split: prefix_rows(dataset, split) for split in expected} == expected
    assert dataset.item_ids.to_list() == sorted(seen)


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.sampled_from([{"split": "leave-k-out", "leave_k": 2}, USERS]), st.sampled_from([2, 100]))
@example([(user, item, item) for user in range(8) for item in range(5)], USERS, 100)  # has users of all three parts
def test_training_holds_no_held_out_target(interactions, options, max_length):
    """Neither as a target nor in a history, of prefix rows and of sequence rows; nor is it counted as popular."""
    dataset = build(interactions, timed=True, **options)
    if dataset is None:
        return
    held = dataset.roles > 1
    used = torch.zeros(len(dataset.items), dtype=torch.bool)
    for kind in ("prefix", "sequence"):
        rows = dataset.rows("train", max_length, kind=kind)
        for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
            used[start : start + length + 1] = True  # the history and the target behind it
    assert not (used & held).any()
    users = torch.repeat_interleave(torch.arange(dataset.num_users), dataset.offsets.diff())
    if options is USERS:  # nothing at all of a held-out user
        testable = torch.tensor([held_out(user, 0) != "train" for user in dataset.user_ids])
        assert not (used & testable[users]).any()
    counted = torch.arange(len(dataset.items)) < dataset.training_stop[users]
    assert not (counted & held).any()
    assert torch.equal(dataset.popularity(), dataset.items[counted].bincount(minlength=dataset.num_items))
    if options is USERS:  # a refit trains on validation users, and on nobody of the test
        refit = dataset.with_validation_in_training().rows("train", max_length, kind="sequence")
        assert not {held_out(dataset.user_ids[user], 0) for user in refit.users.tolist()} & {"test"}


@pytest.mark.parametrize("split", ["leave-k-out", "users"])
def test_a_k_beyond_all_users_is_no_more_work_than_their_longest(split):
    interactions = [(user, item, item) for user in range(60) for item in range(5)]
    whole, most = (build(interactions, timed=True, split=split, leave_k=k) for k in (5, 10**30))
    assert torch.equal(whole.roles, most.roles)
    assert torch.equal(whole.training_stop, most.training_stop)


def test_a_user_stays_held_out_when_others_come(write):
    def text(users):
        return "user,item\n" + "".join(f"u{user},i{(user + step) % 4}\n" for user in users for step in range(5))

    def roles(dataset):
        return {
            dataset.user_ids[user]: dataset.roles[dataset.offsets[user] : dataset.offsets[user + 1]].max().item()
            for user in range(dataset.num_users)
        }

    few, many = (prepare(write("a.csv", text(users)), **USERS) for users in (range(0, 60, 2), range(60)))
    assert set(roles(few).values()) == {1, 2, 3}
    assert roles(few).items() <= roles(many).items()
    assert roles(few) != roles(prepare(write("a.csv", text(range(0, 60, 2))), **USERS, split_seed=1))
    assert few.report["held_out_users"] == {
        split: sum(role == code for role in roles(few).values()) for code, split in ((2, "valid"), (3, "test"))
    }


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.integers(0, 8), st.integers(1, 6), st.sampled_from(["drop-items", "drop-rows"]))
def test_training_targets_begin_at_train_time(interactions, train_time, more, unseen):
    """Rows of training are those of the whole period whose target is late enough, and all else is as it is without."""
    cuts = {"valid_time": train_time + more, "test_time": train_time + more + 2}
    late = build(interactions, timed=True, train_time=train_time, unseen=unseen, **cuts)
    whole = build(interactions, timed=True, unseen=unseen, **cuts)
    if late is None or unseen == "drop-rows":  # whose vocabulary is that of the rows that are kept
        return
    assert torch.equal(late.items, whole.items)
    assert torch.equal(late.training_stop, whole.training_stop)
    dropped = whole.roles != late.roles
    assert (whole.roles[dropped] == 1).all()
    assert (late.roles[dropped] == 0).all()
    assert int(dropped.sum()) <= late.report["dropped_rows"]["train"]["before_train_time"]
    times = {(f"u{user}", f"i{item}"): [] for user, item, _ in interactions}
    for user, item, time in interactions:
        times[f"u{user}", f"i{item}"].append(time)
    for user, _, target in prefix_rows(late, "train"):
        assert any(train_time <= time < train_time + more for time in times[user, target])
    gone = prefix_rows(whole, "train") - prefix_rows(late, "train")
    for user, _, target in gone:
        assert any(time < train_time for time in times[user, target])


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.integers(0, 12), st.integers(0, 6), st.sampled_from([1, 7, blocks.BLOCK]))
def test_time_split_against_its_definition(interactions, valid_time, more, block):
    test_time = valid_time + more
    users = in_time_order(interactions, timed=True)
    seen = {item for pairs in users.values() for item, time in pairs if time < valid_time}
    expected = {"train": Counter(), "valid": Counter(), "test": Counter()}
    unseen, emptied = Counter(), Counter()
    for user, pairs in users.items():
        for place, (item, time) in list(enumerate(pairs))[1:]:
            split = "train" if time < valid_time else "valid" if time < test_time else "test"
            history = tuple(other for other, _ in pairs[:place] if other in seen)
            if item not in seen:
                unseen[split] += 1
            elif not history:
                emptied[split] += 1
            else:
                expected[split][user, history, item] += 1
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, splitting):
            patch.setattr(module, "BLOCK", block)
        dataset = build(interactions, timed=True, valid_time=valid_time, test_time=test_time)
    if dataset is None:
        assert not expected["train"]
        return
    assert dataset.split == "time"
    assert dataset.item_ids.to_list() == sorted(seen)
    assert {split: prefix_rows(dataset, split) for split in expected} == expected
    popularity = Counter(item for pairs in users.values() for item, time in pairs if time < valid_time)
    assert dataset.popularity().tolist() == [popularity[item] for item in sorted(seen)]
    for split in ("valid", "test"):
        dropped = dataset.report["dropped_rows"][split]
        assert (dropped["unseen_target"], dropped["empty_history"]) == (unseen[split], emptied[split])
        gone = unseen[split] + emptied[split]
        assert dropped["share"] == (gone / (gone + expected[split].total()) if gone else 0)


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.sampled_from(["time", "leave-one-out"]), st.integers(1, 9))
def test_windows_cover_each_training_target_once(interactions, split, max_length):
    dataset = build(interactions, timed=True, split=split)
    if dataset is None:
        return
    rows = dataset.rows("train", max_length, kind="sequence")
    assert (rows.lengths >= 1).all()
    assert (rows.lengths <= max_length).all()
    covered = torch.cat(
        [torch.arange(s, s + n) + 1 for s, n in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)]
    )
    assert torch.equal(covered.sort().values, dataset.targets["train"])
    assert (rows.starts >= dataset.offsets[rows.users]).all()
    assert (rows.starts + rows.lengths < dataset.training_stop[rows.users]).all()
    batch = rows.batch(torch.arange(len(rows)))
    real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
    assert (batch.targets[~real] == -100).all()
    assert (batch.item_ids[~real] == 0).all()
    assert (batch.targets[real] >= 0).all()


@settings(max_examples=40, deadline=None)
@given(INTERACTIONS, st.sampled_from(["time", "leave-one-out"]))
def test_windows_agree_with_prefix_rows_of_short_users(interactions, split):
    dataset = build(interactions, timed=True, split=split)
    if dataset is None:
        return
    rows = dataset.rows("train", 100, kind="sequence")
    assert len(rows) == len(rows.users.unique())
    batch = rows.batch(torch.arange(len(rows)))
    told = Counter()
    for user, items, targets, length in zip(
        batch.users.tolist(),
        batch.item_ids.tolist(),
        batch.targets.tolist(),
        batch.lengths.tolist(),
        strict=True,
    ):
        for place in range(length):
            history = tuple(dataset.item_ids[item] for item in items[: place + 1])
            told[dataset.user_ids[user], history, dataset.item_ids[targets[place]]] += 1
    assert told == prefix_rows(dataset, "train")


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.sampled_from(["time", "leave-one-out"]))
def test_splits_are_disjoint_and_the_future_stays_out(interactions, split):
    dataset = build(interactions, timed=True, split=split)
    if dataset is None:
        return
    targets = torch.cat(list(dataset.targets.values()))
    assert len(targets.unique()) == len(targets)
    for name, positions in dataset.targets.items():
        assert torch.equal(positions, positions.sort().values)
        rows = dataset.rows(name, 4)
        assert torch.equal(rows.starts + rows.lengths, positions)  # a history ends directly before its target
        assert (rows.starts >= dataset.offsets[rows.users]).all()
        assert (positions < dataset.offsets[rows.users + 1]).all()
        assert ((positions < dataset.training_stop[rows.users]) == (name == "train")).all()


def test_default_cuts_are_the_80_and_90_percent_quantiles(write):
    text = "user,item,timestamp\n" + "".join(f"u{n % 2},i{n % 3},{n}\n" for n in range(100))
    dataset = prepare(write("data.csv", text))
    assert (dataset.report["valid_time"], dataset.report["test_time"]) == (80, 90)
    assert dataset.report["rows"] == {"train": 78, "valid": 10, "test": 10}
    assert prepare(write("data.csv", text), valid_time=50).report["rows"]["train"] == 48


@pytest.mark.parametrize("count", [1, 2, 9, 10, 1000])
@pytest.mark.parametrize("spread", [1, 3, 10**12])
def test_quantiles_of_any_times(count, spread, monkeypatch):
    random = np.random.Generator(np.random.PCG64(count))
    times = random.integers(-spread, spread, count)
    expected = tuple(np.sort(times)[[count * 8 // 10, count * 9 // 10]])
    assert default_cuts(whole(times)) == expected
    monkeypatch.setattr(splitting, "_SAMPLE", 50)
    assert default_cuts(whole(times)) == expected
    times[:: max(1, count // 50)] = 10 * spread  # the sample sees nothing of the others
    assert default_cuts(whole(times)) == tuple(np.sort(times)[[count * 8 // 10, count * 9 // 10]])


def whole(times: np.ndarray) -> Whole:
    """Return interactions of one user with one item at these times."""
    zeros, ids = np.zeros(len(times), dtype=np.int32), pl.Series(["a"])
    return Whole(Interactions(np.array([0, len(times)]), zeros, zeros.view(np.uint32), None, times, ids, ids))


def test_test_history_holds_the_validation_item(write):
    dataset = prepare(write("data.txt", "a p q r s\n"))
    assert prefix_rows(dataset, "test") == Counter([("a", ("p", "q", "r"), "s")])
    assert prefix_rows(dataset, "test", max_length=2) == Counter([("a", ("q", "r"), "s")])
    assert dataset.popularity().tolist() == [1, 1, 0, 0]


def test_leave_one_out_says_that_it_leaks(write):
    assert "leaks" in prepare(write("data.txt", "a p q r s\n")).report["notes"][0]


def test_empty_validation_is_warned_about(write):
    text = "user,item,timestamp\na,x,1\na,y,2\n"
    with pytest.warns(UserWarning, match="no row for valid"), pytest.warns(UserWarning, match="no row for test"):
        prepare(write("data.csv", text), valid_time=9, test_time=9)


def test_minimum_rating_keeps_equal_ones_and_counts_the_rest(write):
    text = "user,item,rating\na,w,5\na,x,4\na,y,3.9\na,z,4.5\na,x,5\nb,y,1\n"
    dataset = prepare(write("data.csv", text), min_rating=4)
    assert dataset.item_ids.to_list() == ["w", "x", "z"]
    assert dataset.report["filters"] == [
        {"filter": "min_rating", "value": 4, "dropped": {"users": 1, "items": 1, "interactions": 2}}
    ]
    assert dataset.report["read"] == {"users": 2, "items": 4, "interactions": 6}
    assert (dataset.report["users"], dataset.report["items"], dataset.report["interactions"]) == (1, 3, 4)
    json.dumps(dataset.report)


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.integers(2, 4))
def test_core_against_its_definition(interactions, core):
    left = [(user, item) for user, item, _ in interactions]
    while True:
        users, items = Counter(user for user, _ in left), Counter(item for _, item in left)
        kept = [(user, item) for user, item in left if users[user] >= core and items[item] >= core]
        if kept == left:
            break
        left = kept
    if not left:
        return
    dataset = build(interactions, timed=False, core=core)
    if dataset is None:
        return
    assert dataset.user_ids.to_list() == sorted({f"u{user}" for user, _ in left})
    assert Counter(dataset.items.tolist()) == Counter(dataset.item_ids.to_list().index(f"i{item}") for _, item in left)


def test_arguments_of_rows(write):
    dataset = prepare(write("data.txt", "a p q r s\n"))
    with pytest.raises(ValueError, match="split must be one of train, valid, test"):
        dataset.rows("dev", 5)
    with pytest.raises(ValueError, match="max_length"):
        dataset.rows("train", 0)
    with pytest.raises(ValueError, match="kind must be"):
        dataset.rows("train", 5, kind="window")
    with pytest.raises(ValueError, match="for training rows"):
        dataset.rows("test", 5, kind="sequence")


RATED = st.lists(
    st.tuples(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 12)), st.integers(1, 5)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(
    RATED,
    st.integers(0, 12),
    st.integers(0, 6),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.sampled_from(["drop-items", "drop-rows"]),
)
def test_low_ratings_and_short_histories_against_their_definition(rated, valid_time, more, least, unseen):
    test_time = valid_time + more
    users: dict[str, list[tuple[str, int, int]]] = {}
    for (user, item, time), rating in rated:
        users.setdefault(f"u{user}", []).append((f"i{item}", time, rating))
    for items in users.values():
        items.sort(key=lambda entry: entry[1])

    def part_of(time: int) -> int:
        return (time >= valid_time) + (time >= test_time)

    expected = {"train": Counter(), "valid": Counter(), "test": Counter()}
    known = {item for items in users.values() for item, time, _ in items if time < valid_time}
    if unseen == "drop-rows":
        known = set()
        for items in users.values():
            for place, (_, time, rating) in enumerate(items):
                if time < valid_time and rating >= 4 and place >= least[0]:
                    known |= {item for item, *_ in items[: place + 1]}
    for user, items in users.items():
        for place, (item, time, rating) in enumerate(items):
            history = tuple(other for other, *_ in items[:place])
            if unseen == "drop-items":
                history = tuple(other for other in history if other in known)
            elif part_of(time) and not known.issuperset(history):
                continue
            if item in known and rating >= 4 and len(history) >= least[part_of(time)]:
                expected[("train", "valid", "test")[part_of(time)]][user, history, item] += 1
    dataset = build(
        [interaction for interaction, _ in rated],
        timed=True,
        ratings=[rating for _, rating in rated],
        min_rating=4,
        low_rated="history",
        valid_time=valid_time,
        test_time=test_time,
        min_history=least,
        unseen=unseen,
    )
    if dataset is None:
        assert not expected["train"]
        return
    assert {split: prefix_rows(dataset, split) for split in expected} == expected
    assert set(dataset.item_ids) == known
    for part, code in (("train", 0), ("valid", 1), ("test", 2)):
        dropped = dataset.report["dropped_rows"][part]
        candidates = sum(part_of(time) == code for items in users.values() for _, time, _ in items[1:])
        gone = sum(count for reason, count in dropped.items() if reason != "share")
        assert gone == candidates - expected[part].total()

    # Windows hold every training target once, and none but those counts.
    rows = dataset.rows("train", 3, kind="sequence")
    batch = rows.batch(torch.arange(len(rows)))
    counted = batch.targets >= 0
    assert counted.any(1).all()
    places = rows.starts[:, None] + torch.arange(batch.item_ids.shape[1]) + 1
    assert torch.equal(places[counted].sort().values, dataset.targets["train"])
    assert torch.equal(dataset.items[places[counted]].long(), batch.targets[counted])
    refit = dataset.with_validation_in_training()
    assert prefix_rows(refit, "train") == expected["train"] + expected["valid"]
    windows = refit.rows("train", 4, kind="sequence")
    assert int((windows.batch(torch.arange(len(windows))).targets >= 0).sum()) == len(refit.targets["train"])


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.integers(2, 8))
def test_users_with_few_interactions_go_once(interactions, least):
    count = Counter(user for user, _, _ in interactions)
    left = Counter((f"u{user}", f"i{item}") for user, item, _ in interactions if count[user] >= least)
    if not left:
        return
    dataset = build(interactions, timed=False, min_interactions=least)
    if dataset is None:
        return
    users = torch.repeat_interleave(torch.arange(dataset.num_users), dataset.offsets.diff()).tolist()
    pairs = zip(users, dataset.items.tolist(), strict=True)
    assert Counter((dataset.user_ids[user], dataset.item_ids[item]) for user, item in pairs) == left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_rated": "history"}, "needs min_rating"),
        ({"untitled": "drop-rows"}, "needs unseen='drop-rows'"),
        ({"min_history": (0, 1, 1)}, "min_history must be three numbers"),
        ({"min_interactions": -1}, "min_interactions must not be negative"),
        ({"split": "leave-one-out", "unseen": "drop-rows"}, "belongs to the time split"),
        ({"split": "users", "valid_time": 3}, "valid_time=3 belongs to the time split, not to users"),
        ({"split": "time", "leave_k": 2}, "leave_k=2 belongs to the leave-k-out and the users split, not to time"),
        ({"split": "leave-k-out", "split_seed": 2}, "split_seed=2 belongs to the users split, not to leave-k-out"),
        ({"split": "leave-k-out", "leave_k": 0}, "leave_k must be at least 1; found 0"),
        ({"split": "users", "valid_users": 0}, r"valid_users must be in \(0, 1\); found 0"),
        ({"split": "users", "valid_users": 0.5, "test_users": 0.5}, "below 1 together; found 0.5 and 0.5"),
    ],
)
def test_options_that_make_no_sense(write, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(write("a.csv", "user,item,timestamp\na,x,1\n"), **options)


def test_options_of_the_time_split_need_times(write):
    with pytest.raises(DataError, match="the time split needs a timestamp column"):
        prepare(write("a.txt", "a x y z\n"), min_history=(2, 2, 2))


def test_tens_of_millions_of_rows_would_be_held_in_six_bytes_each(write):
    rows = prepare(write("data.txt", "a p q r s\nb q r s p t u\n")).rows("train", 50)
    assert rows.stops.element_size() + rows.lengths.element_size() == 6
    wide = prepare(write("data.txt", "a p q r s\n")).rows("train", 2**15)
    assert wide.lengths.tolist() == [1]
