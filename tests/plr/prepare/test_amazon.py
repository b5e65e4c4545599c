"""Amazon Reviews 2023: the published files, and each protocol against a plain reading of its definition."""

from __future__ import annotations

import gzip
import json
import warnings
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.cli.prepare import Request, run
from plr.data import SequenceDataset, open_prepared
from plr.errors import ConfigError, DataError
from plr.prepare.amazon import SPLIT_TIMES, TABLE_1, find_files, protocol_options

VALID, TEST = SPLIT_TIMES
TIMES = [VALID - 3000, VALID - 2000, VALID - 1, VALID, TEST - 1, TEST, TEST + 9]


def interactions_of(draw) -> list[tuple[str, str, float, int]]:
    """At most one review of an item by a user, in the publishers' order: by user, then time."""
    return sorted(draw, key=lambda row: (row[0], row[3]))


REVIEWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(1, 5), st.sampled_from(range(len(TIMES)))),
    min_size=8,
    max_size=70,
    unique_by=lambda row: row[:2],
).map(
    lambda rows: interactions_of(
        (f"AG{user}", f"B0{item}", float(rating), TIMES[place]) for user, item, rating, place in rows
    )
)


def histories(rows):
    """Yield (user, history, target, rating, time) as the files with histories hold it."""
    past: dict[str, list[str]] = {}
    for user, item, rating, time in rows:
        yield user, tuple(past.setdefault(user, [])), item, rating, time
        past[user].append(item)


def part_of(time: int) -> str:
    return "test" if time >= TEST else "valid" if time >= VALID else "train"


def write_split(folder: Path, rows, domain: str, packed: bool = False) -> None:
    """Write the three files of the publishers' time split, with histories."""
    texts = dict.fromkeys(("train", "valid", "test"), "user_id,parent_asin,rating,timestamp,history\n")
    for user, history, item, rating, time in histories(rows):
        texts[part_of(time)] += f"{user},{item},{rating},{time},{' '.join(history)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in texts.items():
        name = f"{domain}.{part}.csv"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)


def write_ratings(folder: Path, rows, domain: str) -> None:
    lines = [f"{user},{item},{rating},{time}\n" for user, item, rating, time in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{domain}.csv").write_text("user_id,parent_asin,rating,timestamp\n" + "".join(lines))


def write_metadata(folder: Path, titles: dict[str, str | None], domain: str) -> None:
    """Write records with the fields that the published ones have."""
    records = [
        {
            "main_category": "Digital Music",
            "title": title,
            "average_rating": 4.5,
            "rating_number": 12,
            "features": [],
            "description": ["two\tparts", 'and "quotes"'],
            "price": None,
            "images": [{"thumb": "a.jpg", "variant": "MAIN"}],
            "videos": [],
            "store": f"Store {asin[-1]}" if int(asin[-1]) % 2 else None,
            "categories": ["CDs & Vinyl", "Rock", f"Style {asin[-1]}"] if int(asin[-1]) % 3 else [],
            "details": {"Date First Available": "May 1, 2001"},
            "parent_asin": asin,
            "bought_together": None,
        }
        for asin, title in titles.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"meta_{domain}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def prepared(tmp: Path, domain: str, protocol: str | None = None, **options) -> SequenceDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = Request("amazon-2023", str(tmp / "out"), domain=domain, raw=str(tmp / "raw"), protocol=protocol)
        request.options = options
        run(request)
        return open_prepared(tmp / "out")


def rows_of(dataset: SequenceDataset) -> dict[str, Counter]:
    """Return {split: (user, history, target)} with external ids."""
    found = {}
    for split in ("train", "valid", "test"):
        rows = dataset.rows(split, 1000)
        batch = rows.batch(torch.arange(len(rows)))
        users, items = dataset.user_ids.to_list(), dataset.item_ids.to_list()
        found[split] = Counter(
            (users[user], tuple(items[item] for item in history[:length]), items[target])
            for user, history, length, target in zip(
                batch.users.tolist(),
                batch.item_ids.tolist(),
                batch.lengths.tolist(),
                batch.targets.tolist(),
                strict=True,
            )
        )
    return found


def by_rearec(rows, titled: set[str], least: tuple[int, int, int]) -> dict[str, Counter]:
    """Filter the rows of the files with histories one by one, as the protocol is defined."""
    kept = {"train": Counter(), "valid": Counter(), "test": Counter()}
    every = list(histories(rows))
    for user, history, item, rating, time in every:
        if part_of(time) == "train" and rating > 3 and len(history) >= least[0] and {*history, item} <= titled:
            kept["train"][user, history, item] += 1
    known = {item for _, history, target in kept["train"] for item in (*history, target)}
    for user, history, item, rating, time in every:
        part = part_of(time)
        long_enough = part != "train" and len(history) >= least[("train", "valid", "test").index(part)]
        if long_enough and rating > 3 and {*history, item} <= known:
            kept[part][user, history, item] += 1
    return kept


@settings(max_examples=60, deadline=None)
@given(
    rows=REVIEWS,
    untitled=st.sets(st.integers(0, 7), max_size=2),
    least=st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 3, 3)]),
)
def test_rearec_protocol_against_its_definition(tmp_path_factory, rows, untitled, least):
    tmp = tmp_path_factory.mktemp("rearec")
    write_split(tmp / "raw", rows, "Toys")
    titles = {f"B0{number}": None if number in untitled else f"Title {number}" for number in range(8)}
    write_metadata(tmp / "raw", titles, "Toys")
    expected = by_rearec(rows, {asin for asin, title in titles.items() if title}, least)
    if not expected["train"]:
        with pytest.raises(DataError, match="no training row"):
            prepared(tmp, "Toys", "rearec", min_history=least)
        return
    dataset = prepared(tmp, "Toys", "rearec", min_history=least)
    assert rows_of(dataset) == expected
    known = {item for _, history, target in expected["train"] for item in (*history, target)}
    assert dataset.item_ids.to_list() == sorted(known)
    assert (dataset.popularity() > 0).all()
    dropped = dataset.report["dropped_rows"]
    for part in expected:
        candidates = sum(bool(history) and part_of(time) == part for _, history, _, _, time in histories(rows))
        gone = sum(count for reason, count in dropped[part].items() if reason != "share")
        assert gone == candidates - expected[part].total()


def by_plr(rows, least: int) -> dict[str, Counter]:
    """The paper: ratings above 3 only, users with at least ``least`` of them; items of the training period."""
    positive = [row for row in rows if row[2] > 3]
    count = Counter(row[0] for row in positive)
    positive = [row for row in positive if count[row[0]] >= least]
    known = {item for _, item, _, time in positive if time < VALID}
    kept = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for user, history, item, _, time in histories([row for row in positive if row[1] in known]):
        if history:
            kept[part_of(time)][user, history, item] += 1
    return kept


@settings(max_examples=60, deadline=None)
@given(rows=REVIEWS, least=st.integers(0, 4), split=st.booleans())
def test_plr_protocol_against_its_definition(tmp_path_factory, rows, least, split):
    tmp = tmp_path_factory.mktemp("plr")
    (write_split if split else write_ratings)(tmp / "raw", rows, "Toys")
    expected = by_plr(rows, least)
    if not expected["train"]:
        with pytest.raises(DataError, match=r"no training row|no interaction is left"):
            prepared(tmp, "Toys", min_interactions=least)
        return
    dataset = prepared(tmp, "Toys", min_interactions=least)
    assert rows_of(dataset) == expected
    report = dataset.report
    assert (
        report["read"]["interactions"] - sum(step["dropped"]["interactions"] for step in report["filters"])
        == (report["filtered"]["interactions"])
    )
    for part, (first, last) in report["times"].items():
        assert part_of(first) == part_of(last) == part


SMALL = [
    ("AGA", "B01", 5.0, VALID - 900),
    ("AGA", "B02", 4.0, VALID - 800),
    ("AGA", "B03", 2.0, VALID - 700),
    ("AGA", "B04", 5.0, VALID + 1),
    ("AGB", "B02", 5.0, VALID - 500),
    ("AGB", "B01", 4.0, VALID - 400),
    ("AGB", "B03", 5.0, VALID - 300),
    ("AGB", "B01", 5.0, TEST + 1),
]


def test_item_features_stand_in_the_order_of_the_items(tmp_path):
    write_ratings(tmp_path / "raw" / "benchmark" / "5core" / "rating_only", SMALL, "CDs_and_Vinyl")
    write_metadata(tmp_path / "raw" / "meta", {"B03": "Third", "B01": "First\tone ", "B09": "Other"}, "CDs_and_Vinyl")
    dataset = prepared(tmp_path, "CDs_and_Vinyl", min_interactions=0)
    items = pl.read_parquet(dataset.item_features)
    text = pl.String
    expected = {"item_id": text, "title": text, "categories": pl.List(text), "store": text, "text": text}
    assert items.schema == expected
    assert items["item_id"].to_list() == dataset.item_ids.to_list() == ["B01", "B02", "B03"]
    assert items["title"].to_list() == ["First\tone", None, "Third"]
    assert items["categories"].to_list() == [["CDs & Vinyl", "Rock", "Style 1"], None, None]
    assert items["store"].to_list() == ["Store 1", None, "Store 3"]
    assert items["text"].to_list() == ["First one. CDs & Vinyl > Rock > Style 1. Store 1", None, "Third. Store 3"]
    assert dataset.report["metadata"]["items_with_title"] == 2
    assert dataset.report["protocol"] == "plr, CDs_and_Vinyl"


def test_both_layouts_packed_or_not_give_the_same(tmp_path):
    for name, packed in (("plain", False), ("packed", True)):
        write_split(tmp_path / name / "raw", SMALL, "Toys", packed)
    write_ratings(tmp_path / "ratings" / "raw", SMALL, "Toys")
    made = [prepared(tmp_path / name, "Toys") for name in ("plain", "packed", "ratings")]
    assert rows_of(made[0]) == rows_of(made[1]) == rows_of(made[2])
    assert len({one.content_hash for one in made}) == 3  # they are made of other files


def test_statistics_stand_beside_the_papers(tmp_path, capsys):
    write_ratings(tmp_path / "raw", SMALL * 1, "CDs_and_Vinyl")
    prepared(tmp_path, "CDs_and_Vinyl", min_interactions=0)
    printed = capsys.readouterr().out
    assert "Table 1" in printed
    assert "943,399" in printed
    assert "99.97%" in printed
    assert "no meta_CDs_and_Vinyl.jsonl" in printed
    assert {name: sizes["users"] for name, sizes in TABLE_1.items()}["Movies_and_TV"] == 51_566


def test_defaults_of_the_protocols():
    assert protocol_options("plr", "CDs_and_Vinyl")["min_interactions"] == 10
    assert protocol_options("plr", "Movies_and_TV")["min_interactions"] == 0
    assert protocol_options("rearec", "CDs_and_Vinyl")["min_history"] == (10, 10, 10)
    assert protocol_options("rearec", "Video_Games")["min_history"] == (1, 5, 5)
    with pytest.raises(ValueError, match="plr, rearec; found 'paper'"):
        protocol_options("paper", "Toys")


def test_a_file_with_another_parts_interaction_is_refused(tmp_path):
    write_split(tmp_path / "raw", SMALL, "Toys")
    path = tmp_path / "raw" / "Toys.train.csv"
    path.write_text(path.read_text() + f"AGZ,B01,5.0,{TEST},\n")
    with pytest.raises(DataError, match=rf"Toys.train.csv:8: timestamp {TEST} is outside"):
        prepared(tmp_path, "Toys")
    assert rows_of(prepared(tmp_path, "Toys", valid_time=VALID - 1))["test"]  # other times: no parts to be outside of


def test_missing_and_doubtful_files(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_files(tmp_path / "none", "Toys")
    (tmp_path / "other.csv").touch()
    with pytest.raises(DataError, match=r"neither Toys.csv nor .*there is other.csv"):
        find_files(tmp_path, "Toys")
    with pytest.raises(DataError, match=r"neither \*.csv nor"):
        find_files(tmp_path, "*")
    (tmp_path / "Toys.train.csv").touch()
    with pytest.raises(DataError, match=r"Toys.valid.csv, Toys.test.csv missing"):
        find_files(tmp_path, "Toys")
    for folder in ("one", "two"):
        write_ratings(tmp_path / folder, SMALL, "Games")
    with pytest.raises(DataError, match=r"several files Games.csv: one/Games.csv, two/Games.csv"):
        find_files(tmp_path, "Games")


def test_rearec_needs_titles(tmp_path):
    write_split(tmp_path / "raw", SMALL, "Toys")
    with pytest.raises(DataError, match="needs item metadata"):
        prepared(tmp_path, "Toys", "rearec")


def test_what_does_not_fit_together(tmp_path):
    with pytest.raises(ConfigError, match="needs --domain"):
        run(Request("amazon-2023", str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="domain belongs to the source amazon-2023"):
        run(Request("ratings.csv", str(tmp_path / "out"), domain="Toys"))
    with pytest.raises(ConfigError, match="--out is missing"):
        run(Request("ratings.csv", ""))


def test_the_same_again_is_left_as_it_is_and_another_refused(tmp_path):
    write_ratings(tmp_path / "raw", SMALL, "Toys")
    first = prepared(tmp_path, "Toys")
    manifest = tmp_path / "out" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert prepared(tmp_path, "Toys").content_hash == first.content_hash
    assert manifest.stat().st_mtime_ns == written
    with pytest.raises(DataError, match="other files or options"):
        prepared(tmp_path, "Toys", min_interactions=1)
    assert open_prepared(tmp_path / "out").content_hash == first.content_hash
