"""plr.train, plr.evaluate, plr.compare: the documented examples, and runs of frames are as those of files."""

import doctest
import shutil
import subprocess
import sys
import warnings

import polars as pl
import pytest

import plr
from plr import api
from plr.cli.program import main
from plr.config import Config
from plr.errors import ConfigError, DataError, RunError
from plr.runs import RunFolder
from plr.systems import METHODS
from tests.plr.test_estimators import SMALL, interactions
from tests.plr.training.test_resume import Killed, assert_equal_runs

OPTIONS = {"method": "base", "split": "leave-one-out", "hidden_dropout": 0.1, **SMALL}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which the examples of the docstrings have run, and how many of them there were and failed."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finder, runner, names = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(), {}
        for name in ("train", "evaluate", "compare"):
            for test in finder.find(getattr(api, name), f"plr.{name}", globs={}):
                test.globs = names  # one goes on where the other ends, as a reader does
                runner.run(test, clear_globs=False)
        return folder, runner.tries, runner.failures, names["metrics"]


def test_the_examples_of_the_docstrings_run(made):
    _, tried, failed, _ = made
    assert tried > 12
    assert not failed


def test_importing_plr_is_quick():
    code = "import plr, sys; print(*sorted({'torch', 'polars', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert {"train", "evaluate", "compare"} <= set(plr.__all__)


def test_a_run_of_a_frame_is_evaluated_and_compared_by_the_commands_and_where_it_was_moved_to(made, tmp_path, capsys):
    folder, _, _, metrics = made
    runs = [str(tmp_path / name) for name in ("sasrec", "plr")]
    for run in runs:
        shutil.copytree(folder / "runs" / run.rpartition("/")[2], run)
    assert main(["evaluate", runs[1], "--by", "history"]) == 0
    assert f"{metrics['test']['ndcg@10']:.4f}" in capsys.readouterr().out
    assert main(["compare", *runs, "--ks", "[5]"]) == 0
    assert capsys.readouterr().out == str(plr.compare(runs, ks=[5]))
    model = plr.load(runs[1])
    assert plr.evaluate(model).metrics["ndcg@10"] == metrics["test"]["ndcg@10"]
    assert str(plr.compare([plr.load(runs[0]), model])) == str(plr.compare(runs))
    (tmp_path / "plr" / "interactions.parquet").unlink()
    with pytest.raises(DataError, match=r"was trained on runs/plr/interactions.parquet: no such file"):
        plr.evaluate(runs[1])


@pytest.mark.parametrize("by", ["call", "command"])
def test_a_run_of_a_frame_is_resumed_like_one_of_a_file(by, tmp_path, monkeypatch):
    frame = interactions()
    frame.write_csv(tmp_path / "file.csv")
    options = OPTIONS | {"epochs": 4, "patience": 4}
    whole = plr.train(frame, tmp_path / "whole", **options)
    assert plr.train(tmp_path / "file.csv", tmp_path / "of_a_file", **options)["test"] == whole["test"]
    killed, step = tmp_path / "killed", plr.training.module.TrainingModule.on_train_epoch_start

    def dies(self):
        step(self)
        if self.current_epoch == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(plr.training.module.TrainingModule, "on_train_epoch_start", dies)
        with pytest.raises(Killed):
            plr.train(frame, killed, **options)
    assert RunFolder(killed).resume_point.exists()
    with pytest.raises(RunError, match="holds a run of another frame"):
        plr.train(frame.head(90), killed, **options)
    with pytest.raises(RunError, match=r"unfinished run of another configuration .epochs: 4 -> 5"):
        plr.train(frame, killed, **options | {"epochs": 5})
    if by == "call":
        plr.train(frame, killed, **options)
    else:
        assert main(["train", "--config", str(killed / "config.yaml")]) == 0
    assert_equal_runs(tmp_path / "whole", killed)
    with pytest.raises(RunError, match="holds a finished run"):
        plr.train(frame, killed, **options)


def test_a_frames_run_is_gone_on_from_with_its_options_on_a_file_of_any_format(made, tmp_path, capsys):
    folder, *_ = made
    parent = folder / "runs" / "sasrec"
    newer = interactions()
    newer.write_csv(tmp_path / "newer.csv")
    names = ["--data", str(tmp_path / "newer.csv"), "--out", str(tmp_path / "command")]
    with pytest.warns(UserWarning, match="items are known"):
        plr.train(tmp_path / "newer.csv", tmp_path / "called", from_run=plr.load(parent), epochs=1)
    assert main(["train", "--from", str(parent), *names, "--epochs", "1"]) == 0
    assert_equal_runs(tmp_path / "called", tmp_path / "command")
    assert plr.load(tmp_path / "called").get_params()["dim"] == 8


def test_a_frames_run_is_evaluated_on_a_file_of_any_format(made, tmp_path, capsys):
    run, other = made[0] / "runs" / "sasrec", interactions(users=12, length=5)
    other.write_csv(tmp_path / "other.csv")
    other.write_parquet(tmp_path / "other.parquet")
    found = plr.evaluate(run, other)
    assert found.rows == 8
    for name in ("other.csv", "other.parquet"):
        assert plr.evaluate(run, tmp_path / name).metrics == found.metrics
    assert main(["evaluate", str(run), "--data", str(tmp_path / "other.csv")]) == 0
    assert "8 test rows of" in capsys.readouterr().out


def test_what_was_popular_of_late_is_counted_in_a_frame_that_was_moved_with_its_run(tmp_path):
    day = 86_400
    frame = interactions().with_columns(timestamp=1_600_000_000 + pl.col("timestamp") * day // 100)
    plr.train(frame, tmp_path / "made", **OPTIONS)
    before = plr.serving.Recommender.load(tmp_path / "made").popularity_of(2)
    shutil.move(tmp_path / "made", tmp_path / "moved")
    assert plr.serving.Recommender.load(tmp_path / "moved").popularity_of(2).tolist() == before.tolist()


def test_options_of_other_methods_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "_train", lambda config, handed: {})
    data, out = tmp_path / "data.csv", str(tmp_path / "run")
    interactions().write_csv(data)
    said = r"without effect, as only other methods than 'base' have them: streams=4, mixture='states'$"
    with pytest.warns(UserWarning, match=said):
        plr.train(data, out, method="base", streams=4, mixture="states")
    with pytest.warns(UserWarning, match=r"'erl' have them: gate=False$"):
        plr.train(interactions(), out, method="erl", gate=False, steps=3)
    assert main(["train", "--data", str(data), "--out", out, "--method", "base", "--streams", "4"]) == 0
    assert "only other methods than 'base' have them: streams=4\n" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plr.train(data, out, method="plr", streams=4, mixture="states")
        plr.train(data, out, method="base", dim=32, streams=2)
        for method in METHODS:  # what followed from another choice is none of the user's
            Config(method=method, data=str(data), out=out).save(tmp_path / "config.yaml")
            assert main(["train", "--config", str(tmp_path / "config.yaml"), "--out", out]) == 0
    assert "effect" not in capsys.readouterr().err


def test_a_preset_is_taken_and_changed(tmp_path):
    small = SMALL | {"split": "leave-one-out", "streams": 2}
    plr.train(interactions(), tmp_path / "run", preset="plr-paper", **small)
    config = RunFolder(tmp_path / "run").require_finished()
    assert (config.mixture, config.streams, config.dim) == ("states", 2, 8)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda at: plr.train(interactions(), at, dims=8), ConfigError, "no option 'dims', the nearest known is 'dim'"),
        (lambda at: plr.train(interactions(), at, dim=-1), ConfigError, "dim must be"),
        (lambda at: plr.train(interactions(), at, provenance={}), ConfigError, "no option 'provenance'"),
        (lambda at: plr.train(interactions(), ""), RunError, "--out is missing"),
        (lambda at: plr.train(interactions(), None), ConfigError, "out must be the path .*; found None"),
        (lambda at: plr.train([("u", "i")], at), ConfigError, "interactions must be a frame"),
        (lambda at: plr.train("nowhere.csv", at), DataError, "nowhere.csv: no such file"),
        (lambda at: plr.train(interactions(), at, preset="none"), ConfigError, "preset must be one of"),
        (lambda at: plr.train(interactions(), at, from_run="nowhere"), FileNotFoundError, "no run here"),
        (lambda at: plr.train(interactions(), at, callbacks=[3]), ConfigError, "callbacks must be"),
        (lambda at: plr.train(pl.DataFrame({"a": [1], "b": [2]}), at / "new"), DataError, "column"),
        (lambda at: plr.evaluate("nowhere"), FileNotFoundError, "no run here"),
        (lambda at: plr.evaluate(plr.PLR()), RunError, "not fitted; call fit first"),
        (lambda at: plr.compare("runs/first"), ConfigError, "runs must be a list of folders; found 'runs/first'"),
        (lambda at: plr.compare(None), ConfigError, "runs must be a list of folders; found None"),
        (lambda at: plr.compare([at, at], ks=5), ConfigError, "ks must be a list of whole numbers; found 5"),
        (lambda at: plr.compare([]), ConfigError, "two systems or more"),
        (lambda at: plr.compare([at, at], ks=[0]), ConfigError, "ks must be positive"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_left(call, error, said, tmp_path):
    with pytest.raises(error, match=said):
        call(tmp_path)
    assert not (tmp_path / "config.yaml").exists()
    assert not (tmp_path / "interactions.parquet").exists()


def test_evaluating_names_what_cannot_be(made, tmp_path):
    run = made[0] / "runs" / "sasrec"
    for arguments, error, said in (
        ({"ks": [0]}, ConfigError, "ks must be positive"),
        ({"ks": 5}, ConfigError, "ks must be a list of whole numbers; found 5"),
        ({"ks": ["5"]}, ConfigError, "ks must be a list of whole numbers"),
        ({"by": "history"}, ConfigError, "by must be a list of history, popularity, novelty; found 'history'"),
        ({"by": None}, ConfigError, "by must be a list of history, popularity, novelty; found None"),
        ({"by": ["history"], "history_edges": 5}, ConfigError, "history_edges must be a list of .*; found 5"),
        ({"lists": "no"}, ConfigError, "lists must be True or False; found 'no'"),
        ({"rank_with": "gpu"}, ConfigError, "rank_with must be model or engine; found 'gpu'"),
        ({"sampled": "5"}, ConfigError, "sampled must be a whole number; found '5'"),
        ({"sampled": 0}, ConfigError, "sampled must be at least 1; found 0"),
        ({"sampled": True}, ConfigError, "sampled must be a whole number; found True"),
        ({"sampled": 5, "seed": True}, ConfigError, "seed must be a whole number, 0 or more; found True"),
        ({"ks": [True]}, ConfigError, "ks must be .*; found .*True"),
        ({"exclude_seen": "no"}, ConfigError, "exclude_seen must be True, False or None; found 'no'"),
        ({"by": ["age"]}, ConfigError, "by must be of history, popularity, novelty; found age"),
        ({"device": "nothing"}, ConfigError, "--device nothing cannot be used"),
        ({"data": [1]}, ConfigError, "interactions must be a frame"),
        ({"data": pl.DataFrame({"user": ["a"], "item": ["b"], "timestamp": [1]})}, DataError, "^the frame: no tr"),
    ):
        with pytest.raises(error, match=said):
            plr.evaluate(run, **arguments)
    assert plr.evaluate(run, ks=(k for k in (1, 5))).ks == (1, 5)  # read once
