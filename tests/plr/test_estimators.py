"""plr.PLR(...).fit(frame): the same runs as `plr train`, frames in and out, options as scikit-learn has them."""

import copy
import json
import pickle
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

import plr
from plr.cli.program import main
from plr.errors import ConfigError, DataError, RequestError, RunError
from plr.runs import RunFolder

SMALL = {"dim": 8, "heads": 2, "ffn_dim": 8, "epochs": 1, "batch_size": 64, "max_length": 6, "threads": 1}


def interactions(users: int = 30, length: int = 6, items: int = 20) -> pl.DataFrame:
    rows = [(f"u{u:02}", f"i{(u * 3 + n * n) % items}", 100 * n + u) for u in range(users) for n in range(length)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


class Stream:
    """Some library's frame: nothing but an Arrow stream."""

    def __init__(self, frame: pl.DataFrame):
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "run"
    return plr.PLR(out=out, streams=2, split="leave-one-out", **SMALL).fit(interactions())


def test_a_frame_trains_what_its_file_trains(fitted, tmp_path, capsys):
    interactions().write_csv(tmp_path / "file.csv")
    run = tmp_path / "run"
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    data = ["--data", str(tmp_path / "file.csv"), "--split", "leave-one-out", "--progress", "false"]
    assert main(["train", *data, "--out", str(run), "--streams", "2", *flags]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("valid", "test"):
        assert fitted.metrics_[split] == metrics[split]
    assert fitted.metrics_["files"] == metrics["files"]  # weights and ids, to the bit


def test_a_fitted_run_is_one_for_every_command(fitted, capsys):
    assert main(["evaluate", str(fitted.out)]) == 0
    assert f"{fitted.metrics_['test']['ndcg@10']:.4f}" in capsys.readouterr().out


def test_histories_and_frames_get_the_same_recommendations(fitted):
    frame = interactions(users=4)
    histories = [frame.filter(pl.col("user_id") == f"u{u:02}")["item_id"].to_list() for u in range(4)]
    expected = fitted.recommend(histories, k=3)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)  # the timestamps say what is older
    for given in (frame, shuffled, frame.lazy(), Stream(shuffled), shuffled.to_dict()):
        found = fitted.recommend(given, k=3)
        assert found.columns == ["user_id", "item", "rank", "score", "source"]
        for user, answer in enumerate(expected):
            own = found.filter(pl.col("user_id") == f"u{user:02}")
            assert own["item"].to_list() == [each.item for each in answer]
            assert own["score"].to_list() == pytest.approx([each.score for each in answer], rel=1e-5)
            assert own["rank"].to_list() == [1, 2, 3]


def test_answers_of_unequal_length_stay_with_their_users(fitted):
    frame = pl.DataFrame({"user_id": ["b", "a", "b"], "item_id": ["i1", "i2", "i4"]})
    items = len(fitted.recommender.item_ids)
    found = fitted.recommend(frame, k=items, exclude_seen=True)
    assert found["user_id"].to_list() == ["b"] * (items - 2) + ["a"] * (items - 1)
    assert "i2" not in found.filter(pl.col("user_id") == "a")["item"].to_list()


def test_pandas_and_pyarrow_come_out_as_they_came_in(fitted):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency")
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is no dependency")
    frame = interactions(users=3)
    expected = fitted.recommend(frame, k=2)
    as_pandas = fitted.recommend(pandas.DataFrame(frame.to_dict(as_series=False)), k=2)
    assert isinstance(as_pandas, pandas.DataFrame)
    assert as_pandas.to_dict("list") == expected.to_dict(as_series=False)
    assert [str(each) for each in as_pandas.dtypes[["rank", "score"]]] == ["int32", "float32"]  # no objects between
    as_arrow = fitted.recommend(frame.to_arrow(), k=2)
    assert isinstance(as_arrow, pyarrow.Table)
    assert as_arrow.to_pydict() == expected.to_dict(as_series=False)


@pytest.mark.parametrize("module", ["narwhals", "narwhals.stable.v1"])
def test_narwhals_comes_out_around_what_it_came_in(fitted, module):
    narwhals = pytest.importorskip(module, reason="narwhals is no dependency")
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is no dependency")
    frame = interactions(users=3)
    expected = fitted.recommend(frame, k=2)
    for native, kind in ((frame, pl.DataFrame), (frame.to_arrow(), pyarrow.Table)):
        found = fitted.recommend(narwhals.from_native(native), k=2)
        assert type(found) is narwhals.DataFrame
        assert type(found.to_native()) is kind
        assert found.to_dict(as_series=False) == expected.to_dict(as_series=False)


def test_lists_of_users_are_found_whether_ids_are_numbers_or_text(fitted):
    numbered = interactions(users=4).with_columns(pl.col("user_id").str.slice(1).cast(pl.Int64))
    best = fitted.recommend(numbered, k=1)
    denied = best["item"][3]
    for users in ({3: [denied]}, {"3": [denied]}, {"3": [denied], "nobody": ["i1"]}):
        found = fitted.recommend(numbered, k=1, exclude=users)
        assert found["item"][3] != denied
        assert found["item"][:3].to_list() == best["item"][:3].to_list()
        only = fitted.recommend(numbered, k=1, only={user: ["i7"] for user in users})
        assert only["item"].to_list() == [*best["item"][:3], "i7"]
    with pytest.raises(RequestError, match="exclude has two lists for the user 3"):
        fitted.recommend(numbered, exclude={3: [denied], "3": []})


def test_a_mapping_of_unequal_columns_is_named(fitted):
    with pytest.raises(DataError, match=r"a mapping of columns that cannot be read: .*height"):
        fitted.recommend({"user": ["a"], "item": ["i1", "i2"]})


def test_what_is_wrong_with_a_frame_of_pandas_is_named_with_its_column(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency")
    frame = pandas.DataFrame({"user": ["a", "a"], "item": ["x", 3]})
    with pytest.raises(DataError, match=r"pandas that cannot be read: column 'item' holds .* several types, int, str;"):
        plr.SASRec(**SMALL).fit(frame)
    with pytest.raises(DataError, match="pandas that cannot be read: it has the column 'item' more than once"):
        plr.SASRec(**SMALL).fit(pandas.concat([frame, frame[["item"]]], axis=1))


@pytest.mark.parametrize(
    ("values", "said"),
    [([object()] * 2, r"column 'extra' of type object: .*object"), ([1j, 2j], "column 'extra' of type complex128: "),
     ([2**70, 1], "column 'extra' of type object: ")],
    ids=["objects", "complex", "large"],
)  # fmt: skip
def test_what_pandas_cannot_hand_over_is_named_with_its_column(values, said):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency")
    frame = pandas.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "extra": values})
    with pytest.raises(DataError, match=f"a frame of pandas that cannot be read: {said}"):
        plr.SASRec(**SMALL).fit(frame)


def test_a_column_that_no_file_holds_is_named(fitted, tmp_path):
    frame = interactions().with_columns(pl.Series("extra", [object()] * 180, dtype=pl.Object))
    said = "^column 'extra' of the frame has the type Object, which is not to be kept in a file"
    with pytest.raises(DataError, match=said):
        plr.SASRec(out=tmp_path / "run", **SMALL).fit(frame)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=said):
        plr.evaluate(fitted, frame)


def test_a_relation_of_duckdb_comes_out_as_one_of_its_connection(fitted):
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is no dependency")
    pytest.importorskip("pyarrow", reason="pyarrow is no dependency")
    frame = interactions(users=3)
    connection = duckdb.connect()
    connection.register("frame", frame.to_arrow())
    connection.execute("CREATE TABLE log AS SELECT * FROM frame")
    found = fitted.recommend(connection.sql("SELECT * FROM log ORDER BY user_id, timestamp"), k=2)
    assert isinstance(found, duckdb.DuckDBPyRelation)
    assert found.pl().equals(fitted.recommend(frame, k=2))
    seen = connection.sql("SELECT count(*) FROM found JOIN log ON found.user_id = log.user_id AND found.rank = 1")
    assert seen.fetchall() == [(len(frame),)]
    assert connection.sql("SHOW TABLES").fetchall() in ([("log",)], [("frame",), ("log",)])


def test_saved_and_loaded_it_recommends_the_same_and_the_folder_is_whole(tmp_path):
    model = plr.SASRec(seed=3, split="leave-one-out", **SMALL).fit(Stream(interactions()))
    temporary = model.recommender and Path(RunFolder(model._fitted.path).path)
    target = tmp_path / "saved"
    model.save(target)
    expected = model.recommend([["i1", "i2"]], k=5)
    metrics = model.metrics_
    del model
    assert not temporary.exists()
    loaded = plr.load(target)
    assert type(loaded) is plr.SASRec
    assert loaded.metrics_ == metrics
    assert loaded.get_params()["seed"] == 3
    assert loaded.recommend([["i1", "i2"]], k=5) == expected
    assert main(["evaluate", str(target)]) == 0
    with pytest.raises(RunError, match="exists already"):
        loaded.save(target)


def test_parameters_are_got_set_and_cloned():
    model = plr.PLR(dim=32, streams=3, ks=[5, 10])
    assert model.set_params(streams=8, out="x") is model
    found = model.get_params()
    assert found.items() >= {"out": "x", "dim": 32, "streams": 8, "lr": 1e-3, "progress": False}.items()
    assert not {"backbone", "method", "data", "from_run", "provenance"} & set(found)
    assert found["temperature"] is None  # follows from the backbone
    clone = type(model)(**found)
    # What scikit-learn's clone asks of a copy: the very values that it was made with.
    assert all(value is found[name] for name, value in clone.get_params().items())
    assert clone._config(clone._options, "d", "o") == model._config(model._options, "d", "o")
    assert repr(clone) == repr(model) == "PLR(out='x', dim=32, streams=8, ks=[5, 10])"
    assert repr(plr.PLR(lr=1e-3)) == "PLR()"
    other = plr.Recommender(backbone="bert4rec", method="erl", steps=3)
    assert other.get_params()["steps"] == 3


def test_any_pair_is_fitted_under_one_name_and_a_run_of_any_kind_is_served_by_it(tmp_path):
    frame = interactions()
    model = plr.Recommender(backbone="bert4rec", method="prl", out=tmp_path / "run", split="leave-one-out", **SMALL)
    expected = model.fit(frame).recommend([["i1", "i2"]], k=4)
    served = plr.Recommender.load(tmp_path / "run")
    assert served.recommend([["i1", "i2"]], k=4) == expected
    assert served.session(["i1", "i2"]).recommend(4) == expected[0]
    again = plr.load(tmp_path / "run")
    assert type(again) is plr.Recommender
    assert {"backbone": "bert4rec", "method": "prl"}.items() <= again.get_params().items()
    assert again.recommend([["i1", "i2"]], k=4) == expected


def test_who_recommends_with_a_run_does_not_wait_for_what_trains(fitted):
    code = (
        "import sys, plr\n"
        "for load in (plr.Recommender.load, plr.load):\n"
        "    load(sys.argv[1]).recommend([['i1']], k=2)\n"
        "print('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, fitted.out], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_scikit_learn_clones_a_system():
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is no dependency")
    model = plr.PLR(dim=32, ks=[5, 10], out="x")
    assert base.clone(model).get_params() == model.get_params()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plr.PLR(dimension=3), "no option 'dimension'"),
        (lambda: plr.PLR(dim=0), "dim must be at least 1"),
        (lambda: plr.PLR(method="base"), "method is 'plr' in PLR"),
        (lambda: plr.PLR(data="x"), "no option 'data'"),
        (lambda: plr.PLR(out=5), "out must be the path of the run's folder, or None; found 5"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_refused_option_changes_nothing():
    model = plr.PLR(dim=64)
    with pytest.raises(ConfigError):
        model.set_params(streams=3, dim=-1)
    assert (model.get_params()["dim"], model.get_params()["streams"]) == (64, 2)


def test_bad_data_and_requests_are_named(fitted, tmp_path):
    with pytest.raises(RunError, match="not fitted"):
        plr.PLR().recommend([["i1"]])
    with pytest.raises(RunError, match="not fitted"):
        plr.PLR().save(tmp_path / "x")
    with pytest.raises(RequestError, match="never seen"):
        fitted.recommend([["nothing"]])
    with pytest.raises(DataError, match="no item column"):
        fitted.recommend(pl.DataFrame({"user_id": ["a"], "product": ["i1"]}))
    with pytest.raises(DataError, match="no item column"):
        plr.PLR(**SMALL).fit(pl.DataFrame({"user_id": ["a"], "product": ["i1"]}))
    with pytest.raises(ConfigError, match="must be a frame"):
        plr.PLR(**SMALL).fit([["i1", "i2"]])
    with pytest.raises(DataError, match="no such file"):
        plr.PLR(**SMALL).fit(tmp_path / "none.csv")
    with pytest.raises(RunError, match="finished"):
        plr.PLR(out=fitted.out, streams=2, split="leave-one-out", **SMALL).fit(interactions())


def test_columns_of_other_names(tmp_path):
    frame = interactions().rename({"user_id": "who", "item_id": "what", "timestamp": "then"})
    names = {"user_column": "who", "item_column": "what", "timestamp_column": "then"}
    model = plr.SASRec(**SMALL, **names, split="leave-one-out").fit(frame)
    found = model.recommend(frame.head(6), k=2)
    assert found.columns == ["who", "item", "rank", "score", "source"]
    assert len(found) == 2


def test_a_runs_frame_is_never_overwritten(tmp_path):
    out = tmp_path / "run"
    plr.SASRec(out=out, split="leave-one-out", **SMALL).fit(interactions())
    before = (out / "interactions.parquet").read_bytes()
    with pytest.raises(RunError, match="finished run"):
        plr.load(out).fit(interactions(users=20))
    (out / "metrics.json").unlink()  # as where it was interrupted
    with pytest.raises(RunError, match="another frame"):
        plr.SASRec(out=out, split="leave-one-out", **SMALL).fit(interactions(users=20))
    assert (out / "interactions.parquet").read_bytes() == before
    assert main(["train", "--config", str(out / "config.yaml")]) == 0


def test_what_followed_from_the_options_is_no_option_of_a_loaded_system(fitted):
    loaded = plr.load(fitted.out)
    given = {name: value for name, value in loaded.get_params().items() if name != "out"}
    asked_for = plr.PLR(**SMALL, streams=2, split="leave-one-out").get_params()
    assert given == {name: value for name, value in asked_for.items() if name != "out"}
    assert loaded.set_params(mixture="states")._config(loaded._options, "d", "o").contrastive_weight == 1.0


def test_a_frame_that_cannot_be_used_leaves_nothing_and_the_next_one_is_taken(tmp_path):
    out = tmp_path / "runs" / "run"
    model = plr.SASRec(out=out, split="leave-one-out", **SMALL)
    frame = interactions()
    third = pl.int_range(pl.len()) == 2
    for wrong, error, said in (
        (frame.rename({"item_id": "product"}), DataError, "^the frame: no item column"),
        (frame.with_columns(pl.when(~third).then("item_id").alias("item_id")), DataError, "^the frame:3: column 'item"),
        (frame.head(0), DataError, "^the frame: it holds no interaction"),
        (frame.head(1), DataError, "^the frame: no training row"),
        (frame.with_columns(pl.lit(1.5).alias("item_id")), DataError, "Float64, which pandas makes of integers"),
    ):
        with pytest.raises(error, match=said):
            model.fit(wrong)
        assert not out.parent.exists()
    assert model.fit(frame).metrics_["test"]
    # What lay there before stays.
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="no item column"):
        plr.SASRec(out=other, **SMALL).fit(frame.rename({"item_id": "product"}))
    assert [each.name for each in other.iterdir()] == ["notes.txt"]


def test_times_that_would_be_sorted_as_text_are_refused(fitted):
    frame = interactions(users=2).with_columns(pl.col("timestamp").cast(pl.String))
    with pytest.raises(DataError, match="column 'timestamp' of a frame of histories must hold numbers or dates"):
        fitted.recommend(frame)
    with pytest.raises(DataError, match=r"column 'item_id' .* 1 missing"):
        fitted.recommend(pl.DataFrame({"user_id": ["a", "a"], "item_id": ["i1", None]}))


def test_fit_partial_goes_on_from_what_was_fitted(fitted, tmp_path):
    model = plr.load(fitted.out)
    newer = interactions(users=40, items=23)
    with pytest.warns(UserWarning, match=r"20 items are known, 3 are new and start at random"):
        assert model.fit_partial(newer, new_items="random", epochs=2) is model
    assert model.metrics_["epochs"] == 2
    assert model.get_params() == plr.load(fitted.out).get_params()  # what was for that run alone is gone
    assert set(model.recommender.item_ids) == set(newer["item_id"])
    model.save(tmp_path / "saved")
    again = plr.load(tmp_path / "saved")
    assert "from_run" not in again.get_params()
    assert again.recommend([["i1", "i2"]], k=3) == model.recommend([["i1", "i2"]], k=3)
    with pytest.warns(UserWarning, match="0 are new"):
        again.fit_partial(newer, out=tmp_path / "third")
    assert again.metrics_["from"]["run"] == str(tmp_path / "saved")
    with pytest.raises(RunError, match="not fitted"):
        plr.SASRec(**SMALL).fit_partial(newer)
    with pytest.raises(ConfigError, match="no option 'epoch'"):
        again.fit_partial(newer, epoch=1)


def test_fit_partial_on_a_prepared_folder_leaves_out_the_options_of_raw_data(tmp_path):
    raw = {"min_rating": 3.0, "user_column": "user_id", "split": "leave-one-out"}
    frame = interactions().with_columns(rating=pl.lit(4.0))
    model = plr.SASRec(**raw, **SMALL).fit(frame)
    frame.write_csv(tmp_path / "newer.csv")
    arguments = [f"--{name}={value}" for name, value in raw.items()]
    assert main(["prepare", str(tmp_path / "newer.csv"), "--out", str(tmp_path / "newer"), *arguments]) == 0
    with pytest.warns(UserWarning, match="20 items are known, 0 are new"):
        model.fit_partial(tmp_path / "newer")
    assert model.get_params()["min_rating"] == 3.0  # fit has it still
    with pytest.raises(ConfigError, match="is prepared already; min_rating must be given to plr prepare"):
        model.fit_partial(tmp_path / "newer", min_rating=3.0)  # not in silence where it is given for this run


class Noted(Callback):
    """A user's callback: notes each epoch's validation metric, and ends training after the second."""

    def __init__(self):
        self.found = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append(float(trainer.callback_metrics["ndcg@10"]))
        trainer.should_stop = len(self.found) == 2

    def state_dict(self):
        return {"found": self.found}

    def load_state_dict(self, state_dict):
        self.found = state_dict["found"]


def test_callbacks_and_loggers_of_lightning_are_handed_through(tmp_path):
    frame, noted = interactions(), Noted()
    options = SMALL | {"split": "leave-one-out", "epochs": 4, "patience": 4}
    logger = CSVLogger(tmp_path / "logs", name="mine")
    model = plr.SASRec(out=tmp_path / "run", **options).fit(frame, callbacks=[noted], logger=logger)
    assert model.metrics_["epochs"] == len(noted.found) == 2
    logged = pl.read_csv(Path(logger.log_dir) / "metrics.csv")["ndcg@10"].drop_nulls().to_list()
    assert logged == noted.found
    assert max(logged) == model.metrics_["valid"]["ndcg@10"]
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())["dim"] == 8
    (own,) = (tmp_path / "run").glob("logs/csv/*/metrics.csv")  # the run's own log stays
    assert pl.read_csv(own)["ndcg@10"].drop_nulls().to_list() == logged

    # Killed after the callback had ended it, a run trains no further.
    (tmp_path / "run" / "metrics.json").unlink()
    again = Noted()
    assert plr.SASRec(out=tmp_path / "run", **options).fit(frame, callbacks=again).metrics_["files"] == (
        model.metrics_["files"]
    )
    assert again.found == noted.found  # what was kept of it


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"callbacks": [print]}, "<built"), ({"callbacks": 3}, "3"), ({"logger": True}, "True"),
        ({"logger": ["wandb"]}, "'wandb'"), ({"logger": "wandb"}, "'wandb'"),
    ],
)  # fmt: skip
def test_what_is_no_callback_or_logger_is_refused(given, found, tmp_path):
    with pytest.raises(ConfigError, match=rf"{next(iter(given))} must be .*; found {found}"):
        plr.SASRec(out=tmp_path / "run", **SMALL).fit(interactions(), **given)
    assert not (tmp_path / "run").exists()


def test_fitting_leaves_threads_and_random_numbers_as_they_were():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(11)
        random.seed(11)
        np.random.seed(11)  # noqa: NPY002  the caller's
        drawn = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(11)
        random.seed(11)
        np.random.seed(11)  # noqa: NPY002
        plr.PLR(split="leave-one-out", **SMALL).fit(interactions())  # on one thread
        assert torch.get_num_threads() == 2
        again = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        assert again[0].equal(drawn[0])
        assert again[1:] == drawn[1:]
        with pytest.raises(RunError, match="required"):
            plr.PLR(split="leave-one-out", **SMALL).fit(interactions(users=1, length=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "surrounding",
    [lambda: default_dtype(torch.float64), lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["float64", "device", "autocast"],
)
def test_a_run_is_that_of_its_options_whatever_torch_has_as_defaults(fitted, surrounding):
    with surrounding():
        model = plr.PLR(streams=2, split="leave-one-out", **SMALL).fit(interactions())
    assert model.metrics_["files"] == fitted.metrics_["files"]  # weights, to the bit
    assert model.metrics_["test"] == fitted.metrics_["test"]


def test_a_copy_of_a_system_outlives_it():
    frame = interactions()
    model = plr.SASRec(split="leave-one-out", **SMALL).fit(frame)
    expected, metrics, folder = model.recommend([["i1", "i2"]], k=5), model.metrics_, Path(model)
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    packed = pickle.dumps(model)
    del model
    assert not folder.exists()
    for again in (*copies, pickle.loads(packed)):
        assert again.recommend([["i1", "i2"]], k=5) == expected
        assert (again.metrics_, again.get_params()["out"]) == (metrics, None)
        assert plr.evaluate(again).metrics["ndcg@10"] == metrics["test"]["ndcg@10"]  # its frame is with it
    assert len({Path(each) for each in copies}) == len(copies)


def test_a_copy_of_a_system_with_a_folder_has_that_folder(fitted):
    for again in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert Path(again) == Path(fitted)
        assert again.recommend([["i1", "i2"]], k=5) == fitted.recommend([["i1", "i2"]], k=5)
    assert repr(copy.copy(plr.PLR(dim=32))) == "PLR(dim=32)"
