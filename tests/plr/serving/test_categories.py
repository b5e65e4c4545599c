"""At most n of a category: the walk down the whole ranking. Popularity of the last days: counted by plain Python."""

from __future__ import annotations

import json
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

import plr.serving.categories as limits
from plr.cli import main
from plr.config import Config
from plr.errors import ConfigError, DataError, RunError
from plr.serving import Recommender
from plr.serving.bulk import recommend_users
from plr.serving.ragged import Ragged
from plr.training import train
from tests.plr.serving.test_filters import IDS, ITEMS, METHODS, histories, ids, recommender_of

pytestmark = pytest.mark.filterwarnings("ignore:.*never seen in training")
CATEGORIES = {item: [f"c{number % 3}", f"d{number // 10}"] for number, item in enumerate(IDS) if number % 5}


@pytest.fixture(scope="module", params=METHODS)
def recommender(request):
    return recommender_of(request.param)


def walked(ranking, k, most, categories):
    """The list, by its definition."""
    counts, taken = {}, []
    for item in ranking:
        of_item = set(categories.get(item, ()))
        if len(taken) < k and all(counts.get(each, 0) < most for each in of_item):
            taken.append(item)
            for each in of_item:
                counts[each] = counts.get(each, 0) + 1
    return taken


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_list_is_the_walk_down_the_whole_ranking(recommender, data):
    asked, k, most = data.draw(histories), data.draw(st.integers(1, ITEMS)), data.draw(st.integers(1, 4))
    exclude = data.draw(st.lists(ids, min_size=len(asked), max_size=len(asked)))
    some = st.lists(st.sampled_from("abcd"), max_size=3)
    categories = data.draw(st.dictionaries(st.sampled_from(IDS), some) | st.just(CATEGORIES))
    options = {"exclude": exclude, "exclude_seen": data.draw(st.booleans())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CANDIDATES", data.draw(st.sampled_from([1, 60, 2**22])))
        found = recommender.recommend(asked, k, at_most=most, categories=categories, **options)
    whole = recommender.recommend(asked, ITEMS, **options)
    for answer, ranking in zip(found, whole, strict=True):
        expected = walked([each.item for each in ranking], k, most, categories)
        if recommender.engine is not None:  # else sums depend on how many rows are ranked together
            assert [each.item for each in answer] == expected
            scores = {each.item: each.score for each in ranking}
            assert [each.score for each in answer] == [scores[item] for item in expected]
        counts = [category for each in answer for category in set(categories.get(each.item, ()))]
        assert max(map(counts.count, counts), default=0) <= most
        assert len(answer) == len(expected)


def test_a_category_that_fills_the_top_is_passed(recommender):
    """All items but the very worst have one category: the walk goes to the end of the ranking."""
    (ranking,) = recommender.recommend([["i3"]], ITEMS)
    categories = dict.fromkeys((each.item for each in ranking[:-1]), "one")
    (found,) = recommender.recommend([["i3"]], 5, at_most=1, categories=categories)
    assert [each.item for each in found] == [ranking[0].item, ranking[-1].item]


def test_what_cannot_be_is_refused(recommender, tmp_path):
    for options, said in (
        ({"at_most": 2}, "belong together"),
        ({"categories": CATEGORIES}, "belong together"),
        ({"category_field": "kind"}, "category_field is a field of categories that are a file; found 'kind' without"),
        ({"at_most": 2, "categories": CATEGORIES, "category_field": "kind"}, "category_field is a field of"),
        ({"at_most": 2, "categories": recommender.categories_of(CATEGORIES), "category_field": "kind"}, "is a field"),
        ({"at_most": 0, "categories": CATEGORIES}, "at_most must be at least 1; found 0"),
        ({"at_most": 2, "categories": {3.0: "one"}}, "must name items of the run, such as 'i0', .*; found '3.0'"),
        ({"at_most": 2, "categories": {"i1": "a", " i1": "b"}}, "names the item 'i1' more than once"),
    ):
        with pytest.raises(ConfigError, match=said):
            recommender.recommend([["i1"]], 3, **options)
    with pytest.raises(TypeError, match=r"at_most must be a whole number; found 1\.5"):
        recommender.recommend([["i1"]], 3, at_most=1.5, categories=CATEGORIES)
    with pytest.raises(TypeError, match=r"of item 'i1' must be a category or a list; found 3\.5"):
        recommender.recommend([["i1"]], 3, at_most=1, categories={"i1": 3.5})
    path = tmp_path / "items.json"
    path.write_text(json.dumps({item: {"kind": each, "shop": "s"} for item, each in CATEGORIES.items()}))
    with pytest.raises(ConfigError, match=r"has fields 'kind', 'shop'; say which holds the categories"):
        recommender.recommend([["i1"]], 3, at_most=1, categories=path)
    answer = recommender.recommend([["i1"]], 9, at_most=2, categories=path, category_field="kind")
    assert answer == recommender.recommend([["i1"]], 9, at_most=2, categories=CATEGORIES)


DAY = 86_400
START = 1_600_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 30 days, in whose last days other items are popular."""
    folder = tmp_path_factory.mktemp("recent")
    rows = [
        (f"u{user}", f"i{(user + step * (day > 20)) % 6 + 6 * (day > 20)}", START + day * DAY + 600 * step + user)
        for user in range(12)
        for day in range(user % 3, 30, 3)
        for step in range(2)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    frame.write_csv(folder / "data.csv")
    train(Config(data=str(folder / "data.csv"), out=str(folder / "run"), method="base", dim=8, ffn_dim=8, layers=1,
                 epochs=1, max_length=8, valid_time=START + 27 * DAY, test_time=START + 28 * DAY, progress=False,
                 accelerator="cpu", threads=1))  # fmt: skip
    return folder


def counted(frame, days):
    late = frame.filter(pl.col("timestamp") > frame["timestamp"].max() - days * DAY)
    return dict(late["item"].value_counts().iter_rows())


def test_popularity_of_the_last_days_of_training(run):
    recommender = Recommender.load(run / "run")
    frame = pl.read_csv(run / "data.csv")
    training = frame.filter(pl.col("timestamp") < START + 27 * DAY)
    for days in (0.5, 2, 400):
        counts = counted(training, days)
        assert recommender.popularity_of(days).tolist() == [counts.get(item, 0) for item in recommender.item_ids]
    assert recommender.popularity_of(400).tolist() == recommender.popularity.tolist()
    users = {"user": ["new", "u1"], "history": [["unknown"], ["i1"]]}
    found = recommender.recommend_frame(users, 3, popularity_days=2)
    popular = found.filter(pl.col("source") == "popularity")
    best = sorted(counted(training, 2).items(), key=lambda pair: (-pair[1], recommender.item_ids.index(pair[0])))[:3]
    assert popular.select("user", "item", "score").rows() == [("new", item, count) for item, count in best]
    assert found.filter(pl.col("source") == "model").rows() == recommender.recommend_frame(
        {"user": ["u1"], "history": [["i1"]]}, 3
    ).rows()
    overall = recommender.recommend_frame(users, 3).filter(pl.col("source") == "popularity")
    assert overall["item"].to_list() != popular["item"].to_list()


def test_popularity_of_other_data_and_what_has_no_times(run, tmp_path):
    recommender = Recommender.load(run / "run")
    frame = pl.read_csv(run / "data.csv")
    counts = counted(frame, 1)
    found = recommender.popularity_of(1, run / "data.csv").tolist()  # all of it, held-out interactions too
    assert found == [counts.get(item, 0) for item in recommender.item_ids]
    frame.select("user", "item").write_csv(tmp_path / "bare.csv")
    with pytest.warns(UserWarning, match="no timestamp column"), pytest.raises(DataError, match="needs times, and it"):
        recommender.popularity_of(1, tmp_path / "bare.csv")
    frame.with_columns(pl.col("timestamp") - START).write_csv(tmp_path / "counter.csv")
    with pytest.raises(DataError, match="times of no known unit"):
        recommender.popularity_of(1, tmp_path / "counter.csv")
    for days in (0, -1, float("nan"), "7", True):
        with pytest.raises(ConfigError, match="popularity_days must be a number above 0"):
            recommender.recommend_frame({"user": ["u"], "history": [["i1"]]}, 3, popularity_days=days)
    with pytest.raises(DataError, match="no such file"):
        recommender.popularity_of(1, tmp_path / "nothing.csv")
    frame.with_columns(pl.col("item").str.to_uppercase()).write_csv(tmp_path / "others.csv")
    for days, which in ((None, "interactions is"), (1, "interactions of the last days is")):
        with pytest.raises(DataError, match=rf"others.csv: none of \d+ {which} with an item of the run, which has 12"):
            recommender.popularity_of(days, tmp_path / "others.csv")
    with pytest.raises(RunError, match="recommender was made of a model"):
        Recommender(recommender.model, recommender.item_ids, recommender.config).popularity_of(1)


def test_a_prepared_folder_has_no_times(run, tmp_path):
    assert main(["prepare", str(run / "data.csv"), "--out", str(tmp_path / "data")]) == 0
    train(Config(**{**{name: getattr(Config.load(run / "run" / "config.yaml"), name) for name in (
        "method", "dim", "ffn_dim", "layers", "epochs", "progress", "accelerator", "threads")},
        "data": str(tmp_path / "data"), "out": str(tmp_path / "run")}))  # fmt: skip
    recommender = Recommender.load(tmp_path / "run")
    with pytest.raises(RunError, match=r"prepared folder .*, which holds none; name a file of interactions"):
        recommender.popularity_of(3)
    assert recommender.popularity_of(3, run / "data.csv").sum() > 0


def test_a_file_of_users_gets_what_frames_get(run, tmp_path):
    users = pl.DataFrame({"user": ["new", "u1", "u2"], "history": ["x", "i1 i2", "i7"]})
    users.write_csv(tmp_path / "users.csv")
    categories = {f"i{number}": {"kind": f"k{number % 2}"} for number in range(12)}
    (tmp_path / "kinds.json").write_text(json.dumps(categories))
    out = tmp_path / "out.parquet"
    command = ["recommend", str(run / "run"), "--users", str(tmp_path / "users.csv"), "--out", str(out), "-k", "5",
               "--at_most", "2", "--categories", str(tmp_path / "kinds.json"), "--popularity_days", "2"]  # fmt: skip
    assert main(command) == 0
    recommender = Recommender.load(run / "run")
    with pytest.warns(UserWarning, match="never seen"):
        expected = recommender.recommend_frame(
            users, 5, at_most=2, categories=tmp_path / "kinds.json", popularity_days=2
        )
    assert pl.read_parquet(out).rows() == expected.rows()
    assert expected.group_by("user").len()["len"].to_list() == [4, 4, 4]  # two of each kind
    assert main(["recommend", str(run / "run"), "--history", "i1", "--popularity_days", "2"]) == 2


def test_an_interrupted_command_with_another_limit_is_refused(run, tmp_path, monkeypatch):
    users = tmp_path / "users.csv"
    pl.DataFrame({"user": [f"u{n}" for n in range(6)], "history": ["i1"] * 6}).write_csv(users)
    monkeypatch.setattr("plr.serving.bulk.BLOCK", 2)
    kinds = tmp_path / "kinds.json"
    kinds.write_text(json.dumps({f"i{number}": ["one"] for number in range(12)}))
    join = "plr.serving.bulk._join"
    with monkeypatch.context() as patch:
        patch.setattr(join, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recommend_users(run / "run", users, tmp_path / "out.csv", k=3, at_most=1, categories=kinds)
    with pytest.raises(RunError, match="parts of an interrupted command with other at_most, categories"):
        recommend_users(run / "run", users, tmp_path / "out.csv", k=3)
    recommend_users(run / "run", users, tmp_path / "out.csv", k=3, at_most=1, categories=kinds)
    assert len(pl.read_csv(tmp_path / "out.csv")) == 6  # one item each
    assert pl.read_csv(tmp_path / "out.csv")["rank"].to_list() == [1] * 6


def test_items_with_many_categories_are_walked_fewer_at_a_time(monkeypatch):
    monkeypatch.setattr(limits, "CANDIDATES", 64)
    together = []

    def ranked(rows, wide):
        together.append(len(rows))
        return np.zeros((len(rows), wide), np.float32), np.tile(np.arange(wide), (len(rows), 1))

    limit = limits.CategoryLimit(1, Ragged.of([*([item, 8, 9, 10] for item in range(7)), []]))
    _, items = limit.fill(ranked, 4, 2)  # 2k = 4 candidates of 4 categories for each of 4 lists, then 8
    assert together == [4, 2, 2]
    assert items.tolist() == [[0, 7]] * 4


def in_order(widths):
    """What ranks the items by their numbers, and writes down how many it was asked for."""

    def ranked(rows, wide):
        widths.append(wide)
        return np.zeros((len(rows), wide), np.float32), np.tile(np.arange(wide), (len(rows), 1))

    return ranked


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_ranked_once_every_other_item_has_a_full_category(most):
    """A request for more than the categories can give costs no ranking of all items."""
    limit = limits.CategoryLimit(most, Ragged.of([[item % 2] for item in range(1000)]))
    widths = []
    _, items = limit.fill(in_order(widths), 3, 8)
    assert widths == [16]
    assert items.tolist() == [[*range(2 * most), *[-1] * (8 - 2 * most)]] * 3
    # Where one is left that has none, it is found, however far down.
    limit = limits.CategoryLimit(most, Ragged.of([*([item % 2] for item in range(999)), []]))
    widths.clear()
    _, items = limit.fill(in_order(widths), 1, 8)
    assert widths == [16, 64, 256, 1000]
    assert items[0, 2 * most] == 999
    # What the list holds already is not left, though its category is not full.
    limit = limits.CategoryLimit(2, Ragged.of([[1], *([0] for _ in range(999))]))
    widths.clear()
    _, items = limit.fill(in_order(widths), 1, 8)
    assert items.tolist() == [[0, 1, 2, *[-1] * 5]]
    assert widths == [16]


def test_a_walk_down_many_items_takes_as_many_steps_as_the_list_is_long(monkeypatch):
    steps = []

    class Counted:
        """numpy, and how often counts of categories are added to: once a step."""

        add = SimpleNamespace(at=lambda *arguments: (steps.append(1), np.add.at(*arguments)))

        def __getattr__(self, name):
            return getattr(np, name)

    count, widths = 5_000, []
    limit = limits.CategoryLimit(2, Ragged(np.append(np.zeros(count - 1, np.int64), 1), np.arange(count + 1)))
    monkeypatch.setattr(limits, "np", Counted())
    _, items = limit.fill(in_order(widths), 1, 4)
    assert items.tolist() == [[0, 1, count - 1, -1]]
    assert 0 < len(steps) <= 4 * len(widths)
