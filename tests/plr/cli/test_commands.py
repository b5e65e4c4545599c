"""The command line as a user meets it."""

import argparse
import gc
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

import plr.__main__
from plr.cli import main
from plr.cli.arguments import PATHS
from plr.cli.commands import COMMANDS
from plr.cli.parser import Parser
from plr.cli.recommend import history_of
from plr.cli.tables import recommendation_table
from plr.config import Config
from plr.errors import ConfigError
from plr.evaluation import load_ranking
from plr.runs import RunFolder
from plr.serving import Recommendation, Recommender
from plr.serving.ragged import Ragged
from plr.systems import BACKBONES, METHODS, REFUSALS
from plr.training import train
from plr_kernels.dispatch import backend
from tests.plr.models.helpers import small_config, small_model


def test_the_help_of_training_shows_what_one_sets_first_and_every_option_once(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    shown = re.findall(r"^  --(\w+)", text, re.MULTILINE)
    assert shown[:5] == ["data", "out", "method", "dim", "epochs"]
    known = {each.name for each in fields(Config)} - {"provenance", "from_run"} | {"preset", "config", "print_config"}
    assert sorted(shown) == sorted(known | {"from"})
    assert len(text[: text.index("\n\n")]) < 120  # the usage is a line



@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        Config(
            data=str(small_data), out=str(out), dim=16, ffn_dim=16, max_length=10, batch_size=32, epochs=4, lr=0.01,
            hidden_dropout=0.1, attention_dropout=0.1, progress=False, kl_weight=0.01,
        )
    )  # fmt: skip
    return out


def test_train_takes_every_field_as_a_flag_and_from_yaml(small_data, tmp_path, capsys):
    yaml = tmp_path / "config.yaml"
    yaml.write_text("dim: 8\nepochs: 1\nffn_dim: 8\nprogress: false\n")
    out = tmp_path / "run"
    status = main(
        ["train", "--config", str(yaml), "--data", str(small_data), "--backbone", "sasrec", "--method", "plr",
         "--out", str(out), "--dim", "12", "--seed", "3", "--ks", "[5]", "--gate", "false", "--batch_size", "32"]
    )  # fmt: skip
    assert status == 0
    config = Config.load(out / "config.yaml")
    assert (config.dim, config.epochs, config.seed, config.ks, config.gate) == (12, 1, 3, (5, 10), False)
    assert "recall@5" in json.loads((out / "metrics.json").read_text())["test"]
    assert "NDCG@10" in capsys.readouterr().out


def test_the_home_folder_in_paths(run, small_data, tmp_path, monkeypatch, capsys):
    """Shells leave `--out=~/run` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(small_data, tmp_path / "small.txt")
    (tmp_path / "config.yaml").write_text("epochs: 1\ndim: 8\nffn_dim: 8\ncache: ~/cache\nprogress: false\n")
    assert main(["train", "--config=~/config.yaml", "--data=~/small.txt", "--out=~/run", "--method=base"]) == 0
    config = Config.load(tmp_path / "run" / "config.yaml")
    assert (config.data, config.cache) == (str(tmp_path / "small.txt"), str(tmp_path / "cache"))
    assert main(["prepare", "~/small.txt", "--out=~/prepared"]) == 0
    assert main(["data", "show", "~/prepared", "--plots=~/plots"]) == 0
    assert main(["evaluate", "~/run", "--data=~/small.txt"]) == 0
    monkeypatch.setenv("PLR_DATA", "~")
    assert main(["evaluate", "~/run", "--data", "small"]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"cache", "run", "prepared", "plots"}
    assert not Path("~").exists()


def arguments_of(parser):
    """Yield all arguments of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub_parser in action.choices.values():
                yield from arguments_of(sub_parser)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_that_names_a_file_is_among_the_paths(command):
    parser = Parser()
    COMMANDS[command].add_options(parser)
    texts = [action for action in arguments_of(parser) if getattr(action, "_typehint", None) in (str, str | None)]
    named = {action.dest for action in texts if re.match(r"[^;:]*\b(file|folder)\b", action.help)}
    assert named - {"format"} <= PATHS


def test_of_several_presets_the_last_one_is_taken_as_of_every_option(tmp_path, capsys):
    arguments = ["train", "--preset", "plr-paper", "--data", "x", "--preset=lares", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    assert "method: lares" in capsys.readouterr().out


def test_a_saved_configuration_can_be_given_back(run, tmp_path):
    out = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(out)]) == 0
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (run, out))
    assert first["test"] == again["test"]


def test_evaluate_repeats_the_saved_metrics(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    test = json.loads((run / "metrics.json").read_text())["test"]
    printed = capsys.readouterr().out
    assert f"{test['recall@10']:.4f}" in printed
    assert f"{test['ndcg@20']:.4f}" in printed
    assert "60 test rows" in printed


def test_what_is_ranked_is_said_as_it_was(run, small_data, tmp_path, capsys):
    """Among all items, or without those of the history: in the heads, the line below and the files."""
    copied = shutil.copytree(run, tmp_path / "run")
    assert main(["evaluate", str(copied), "--by", "novelty"]) == 0
    printed = capsys.readouterr().out
    assert "Test, all items ranked" in printed
    assert "all 24 items ranked; " in printed
    assert "60 rows, all 24 items ranked" in (copied / "evaluation.md").read_text()
    assert json.loads((copied / "evaluation.json").read_text())["exclude_seen"] is False
    assert main(["evaluate", str(copied), "--by", "novelty", "--exclude_seen", "true"]) == 0
    printed = capsys.readouterr().out
    assert "Test, all items but those of the history ranked" in printed
    assert "all 24 items but those of the history ranked; " in printed
    assert "60 rows, all 24 items but those of the history ranked" in (copied / "evaluation.md").read_text()
    assert json.loads((copied / "evaluation.json").read_text())["exclude_seen"] is True
    small = ["--dim", "8", "--ffn_dim", "8", "--epochs", "1", "--method", "base", "--progress", "false"]
    out = ["--data", str(small_data), "--out", str(tmp_path / "excluded"), "--exclude_seen", "true"]
    assert main(["train", *out, *small]) == 0
    assert "Test, all items but those of the history ranked" in capsys.readouterr().out


@pytest.fixture(scope="module")
def judged(run, tmp_path_factory):
    """A prepared folder with categories, and the run's measures on it, from a copy of the run."""
    folder = tmp_path_factory.mktemp("judged")
    copied = shutil.copytree(run, folder / "run")
    (folder / "items.csv").write_text(
        "item,category\n" + "".join(f"i{number},{'odd' if number % 2 else 'even'}\n" for number in range(24))
    )
    data = (RunFolder(copied).require_finished()).data
    assert main(["prepare", data, "--items", str(folder / "items.csv"), "--out", str(folder / "data")]) == 0
    return copied, folder / "data"


def test_evaluate_judges_by_segment_lists_and_samples(judged, capsys):
    copied, data = judged
    capsys.readouterr()
    arguments = ["--data", str(data), "--ks", "[5,10]", "--lists", "--sampled", "100", "--device", "cpu"]
    by = ["--by", "history", "popularity", "novelty", "--history_edges", "[3,6]"]
    assert main(["evaluate", str(copied), *arguments, *by]) == 0
    printed = capsys.readouterr()
    assert "plr: metrics among sampled items mislead" in printed.err
    assert "mislead" not in printed.out  # once
    found = json.loads((copied / "evaluation.json").read_text())
    test, lists = found["test"], found["lists"]
    for name in ("history", "popularity", "novelty"):
        parts = found["segments"][name]["segments"].values()
        assert sum(part["rows"] for part in parts) == found["rows"] == 60
        mean = sum(part["rows"] * part["metrics"]["ndcg@10"] for part in parts) / 60
        assert mean == pytest.approx(test["ndcg@10"])
    assert lists["map@10"] == pytest.approx(test["mrr@10"])
    assert lists["precision@5"] == pytest.approx(test["recall@5"] / 5)
    assert {"coverage@5", "gini@5", "popularity@5", "novelty@5", "serendipity@5", "diversity@5"} <= set(lists)
    assert found["sampled"]["metrics"] == test  # there are fewer than 100 other items
    text = (copied / "evaluation.md").read_text()
    assert "## By history" in text
    assert "| diversity |" in text
    assert f"saved in {copied / 'evaluation.json'}" in printed.out


def test_a_sample_has_fewer_others_where_seen_items_are_left_out(judged, capsys):
    copied, _ = judged
    assert main(["evaluate", str(copied), "--sampled", "23", "--exclude_seen", "true", "--lists"]) == 0
    found = json.loads((copied / "evaluation.json").read_text())
    assert found["sampled"]["metrics"] == found["test"]
    assert "diversity@10" not in found["lists"]
    assert "no diversity: the data have no categories" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_file_of_users_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("plr.cli.recommend._recommend_many", interrupted)
    assert main(["recommend", "run", "--users=users.csv", "--out", "answers.csv"]) == 130
    assert "interrupted; repeat the command to resume after the last finished part" in capsys.readouterr().err


def test_a_message_about_a_file_names_no_option_that_the_command_lacks(run, write, capsys):
    """Those of reading that only plr prepare has, or the command that was given has not."""
    lines = "user_id,item_id,timestamp\n" + "".join(f"u{n % 9},i{n % 7},{1600000000 + n}\n" for n in range(60))
    comment, times = write("comment.csv", lines + "# end\n"), write("times.csv", lines.replace("timestamp", "when"))
    commands = (
        ["evaluate", str(run), "--data"], ["train", "--out", "o", "--data"], ["prepare", "--out", "o"],
        ["recommend", str(run), "--out", "o.csv", "--users"],
    )  # fmt: skip
    for command in commands:
        assert main([*command, str(comment)]) == 2
        assert "leave such lines out with plr prepare --skip_bad_lines" in capsys.readouterr().err
    for command in commands:
        assert main([*command, str(times)]) == 2
        named = "plr prepare --timestamp_column" if command[0] == "evaluate" else "--timestamp_column"
        assert f"name it with {named}, or give {named} none" in capsys.readouterr().err


def test_evaluate_on_other_data_counts_what_the_run_does_not_know(run, small_data, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text(small_data.read_text() + "new i0 i1 unknown i2 i3\nlost i1 i2 i3 never\n")
    assert main(["evaluate", str(run), "--data", str(other)]) == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "61 test rows" in printed
    assert "2 interactions with items unknown to the run were left out, and with them 1 test rows" in printed


@pytest.mark.parametrize("refit", [False, True])
def test_evaluate_says_where_the_test_rows_of_other_data_lie_in_the_time_trained_on(write, tmp_path, capsys, refit):
    """The time split cuts each file by its own quantiles: of a part of the run's file it tests what was trained on."""
    lines = [f"u{user},i{(user + day) % 7},{1_600_000_000 + 86_400 * day}" for day in range(10) for user in range(6)]
    names = ("whole.csv", "early.csv", "late.csv")
    whole, early, late = (
        write(name, "\n".join(["user_id,item_id,timestamp", *part]) + "\n")
        for name, part in zip(names, (lines, lines[:42], [*lines, "u0,i5,1601000000"]), strict=True)
    )
    out = tmp_path / "run"
    sizes = ["--dim", "8", "--ffn_dim", "8", "--heads", "1", "--layers", "1", "--epochs", "1"]
    assert main(["train", "--data", str(whole), "--out", str(out), *sizes, "--refit", str(refit).lower()]) == 0
    until = 1_600_000_000 + 86_400 * (8 if refit else 7)  # the last day of training, and of validation

    def said(*arguments):
        capsys.readouterr()
        assert main(["evaluate", str(out), *arguments]) == 0
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    assert f"the run was trained on targets up to {until}: rows of its own data" in said("--data", str(early))
    assert "trained on targets" not in said("--data", str(late))
    assert "trained on targets" not in said()


def test_recommend_prints_k_items_and_agrees_with_python(run, capsys):
    assert main(["recommend", str(run), "--history", "i3 i4 i5", "-k", "4"]) == 0
    printed = capsys.readouterr().out
    recommender = plr.Recommender.load(run)
    (answer,) = recommender.recommend([["i3", "i4", "i5"]], 4)
    assert answer[0].item == "i6"
    assert len(answer) == 4
    for item in answer:
        assert re.search(rf"\b{item.item}\b.*{item.score:.4f}", printed)


@pytest.mark.parametrize(("items", "listed"), [(24, 10), (6, 6)])
def test_without_a_k_there_are_ten_or_all_items(items, listed):
    recommender = Recommender(small_model(items).float(), [f"i{item}" for item in range(items)], small_config())
    (answer,) = recommender.recommend([["i3"]], exclude_seen=False)
    assert len(answer) == listed


def test_many_histories_get_the_answers_of_single_ones(run):
    recommender = plr.Recommender.load(run)
    histories = [["i1"], ["i3", "i4", "i5"], ["i9", "i10"], [f"i{n % 24}" for n in range(30)]]
    together = recommender.recommend(histories, 5, batch_size=3)
    for history, answer in zip(histories, together, strict=True):
        (alone,) = recommender.recommend([history], 5)
        assert [item.item for item in alone] == [item.item for item in answer]
        assert [item.score for item in alone] == pytest.approx([item.score for item in answer], rel=1e-5)


@pytest.mark.parametrize(
    ("histories", "options", "error", "message"),
    [
        ([["i1"]], {"batch_size": -1}, ValueError, "batch_size must be at least 1; found -1"),
        ([["i1"]], {"k": 2.5}, TypeError, "k must be a whole number; found 2.5"),
        ([["i1"]], {"k": "3"}, TypeError, "k must be a whole number; found '3'"),
        (["i1", "i2"], {}, TypeError, "history 0 must be a sequence of item ids; found 'i1'"),
        ([1, 2], {}, TypeError, "history 0 must be a sequence of item ids; found 1"),
        ([["i1"]], {"unknown": "drop"}, ValueError, 'unknown must be "error" or "skip"; found \'drop\''),
    ],
)
def test_arguments_that_make_no_sense_are_named(run, histories, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        plr.Recommender.load(run).recommend(histories, **options)


@pytest.mark.parametrize("default", ["device", "dtype"])
@pytest.mark.usefixtures("_default_dtype_restored")
def test_recommendations_do_not_depend_on_defaults_of_the_process(default, run):
    histories = [["i3", "i4", "i5"], ["i7"]]
    expected = plr.Recommender.load(run).recommend(histories, 4, exclude_seen=True)
    torch.set_default_device("meta" if default == "device" else None)
    torch.set_default_dtype(torch.float64 if default == "dtype" else torch.float32)
    try:
        assert plr.Recommender.load(run).recommend(histories, 4, exclude_seen=True) == expected
    finally:
        torch.set_default_device(None)


def test_a_very_long_history_among_short_ones_is_padded_with_its_like_alone(run, monkeypatch):
    """100,000 seen items beside 511 short histories would be 0.4 GB of padding; the answers are those of one block."""
    recommender = plr.Recommender.load(run)
    histories = [[f"i{(row + step) % 24}" for step in range(1 + row % 5)] for row in range(40)]
    histories.insert(7, [f"i{step % 21}" for step in range(100_000)])
    pad, padded = Ragged.padded, []

    def spy(*arguments):
        result = pad(*arguments)
        padded.append(result.size)
        return result

    monkeypatch.setattr(Ragged, "padded", spy)
    in_blocks = recommender.recommend(histories, 3, exclude_seen=True)
    assert max(padded) == 100_000
    monkeypatch.setattr("plr.serving.ranker.MOST_EXCLUDED", 2**40)
    assert recommender.recommend(histories, 3, exclude_seen=True) == in_blocks
    assert max(padded) == 41 * 100_000
    assert {item.item for item in in_blocks[7]} == {"i21", "i22", "i23"}


@pytest.mark.parametrize(
    ("given", "history"),
    [
        (["a b c"], ["a", "b", "c"]),
        (["a", "two words", "b"], ["a", "two words", "b"]),
        (['["two words", "b", 7]'], ["two words", "b", "7"]),
        (["two words"], ["two words"]),
        (["[7]"], ["[7]"]),
        (["[7] a"], ["[7]", "a"]),
        (["[8]"], ["8"]),
        (["unknown words"], ["unknown", "words"]),
        (["{}"], ["{}"]),
        ([" "], []),
    ],
)
def test_a_history_may_hold_ids_with_blanks(given, history):
    assert history_of(given, ["a", "b", "c", "two words", "7", "[7]"]) == history


def test_ids_with_blanks_are_taken_from_the_command_line(tmp_path, capsys):
    lines = "".join(f"u{user},item {(user + step) % 6},{user + 9 * step}\n" for user in range(30) for step in range(5))
    (tmp_path / "data.csv").write_text(f"user_id,item_id,timestamp\n{lines}")
    out = str(tmp_path / "run")
    small = ["--dim", "8", "--ffn_dim", "8", "--epochs", "1", "--method", "base", "--progress", "false"]
    assert main(["train", "--data", str(tmp_path / "data.csv"), "--out", out, *small]) == 0
    capsys.readouterr()
    said = []
    for given in (["--history", '["item 1", "item 2"]'], ["--history", "item 1", "--history", "item 2"]):
        assert main(["recommend", out, *given, "-k", "2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["recommend", out, "--history", " ".join(f"x{n}" for n in range(99))]) == 2
    error = capsys.readouterr().err
    assert "'x0', 'x1'" in error
    assert "'x11' and 87 more" in error


@pytest.mark.parametrize(
    "arguments",
    ["prepare NAME --out o", "train --data NAME", "evaluate NAME", "recommend NAME --history i1", "embed-text NAME",
     "data show NAME", "demo --out NAME", "recommend run --history NAME"],
)  # fmt: skip
def test_a_name_that_is_not_utf8_is_one_message(arguments, capsys):
    name = os.fsdecode(b"caf\xe9.csv")
    assert main([name if word == "NAME" else word for word in arguments.split()]) == 2
    advice = "names of files must be UTF-8 text here; rename the file, or give a link to it"
    assert capsys.readouterr().err == f"plr: 'caf\\udce9.csv': {advice}\n"
    with pytest.raises(ConfigError, match="out must be UTF-8 text"):
        Config(out=name)


def test_where_a_run_can_be_written_and_read(run, small_data, tmp_path, capsys, monkeypatch):
    small = ["--data", str(small_data), "--dim", "8", "--ffn_dim", "8", "--epochs", "1", "--method", "base",
             "--progress", "false", "--threads", "1"]  # fmt: skip
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for out in (f"{tmp_path}/slash/", str(tmp_path / "link")):
        assert main(["train", *small, "--out", out]) == 0
    assert (tmp_path / "target" / "metrics.json").exists()
    assert not list(tmp_path.rglob("*.lock"))
    capsys.readouterr()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))  # as on a full disk
    try:
        status = main(["train", *small, "--out", str(tmp_path / "full")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    error = capsys.readouterr().err
    assert status == 2, error
    assert "File too large" in error
    assert "Traceback" not in error
    assert not [path for path in (tmp_path / "full").rglob("*") if path.name.startswith(".") or path.suffix == ".lock"]
    assert main(["train", *small, "--out", str(tmp_path / "full")]) == 0  # resumed when there is room

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    with monkeypatch.context() as patch:  # the tests may run as root, who may write anywhere
        patch.setattr("plr.lock._acquire", refuse)
        assert main(["train", *small, "--out", str(tmp_path / "closed")]) == 2
        assert main(["evaluate", str(run)]) == 0
        assert main(["recommend", str(run), "--history", "i1"]) == 0
        assert main(["train", *small, "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert "holds a finished run" in error


def test_seen_items_are_left_out_on_request(run):
    recommender = plr.Recommender.load(run)
    history = [f"i{n}" for n in range(20)]
    (answer,) = recommender.recommend([history], 10, exclude_seen=True)
    assert {item.item for item in answer} == {"i20", "i21", "i22", "i23"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "RUN", "--history", "i1 nothing"], "history 0: items never seen in training: 'nothing'"),
        (["recommend", "RUN", "--history", " "], "history 0 holds no item that training has seen"),
        (["recommend", "RUN", "--history", "i1", "-k", "99"], "k must be in 1..24, the number of items; found 99"),
        (["recommend", "NOWHERE", "--history", "i1"], "no run here"),
        (["evaluate", "NOWHERE"], "no run here"),
        (["train", "--data", "missing.txt", "--out", "OUT"], "--data missing.txt: no such file"),
        (["train", "--out", "OUT"], "--data is missing"),
        (["train", "--data", "DATA"], "--out is missing"),
        (["train", "--data", "DATA", "--out", "OUT", "--dim", "7"], "heads must be a divisor of dim=7"),
        (["train", "--data", "DATA", "--out", "OUT", "--backbone", "bert4rec-cloze", "--method", "plr"],
         "method 'plr' does not work on backbone 'bert4rec-cloze': Cloze training"),
        (["train", "--data", "DATA", "--out", "OUT", "--backbone", "unisrec"], "text_vectors is missing"),
        (["train", "--data", "DATA", "--out", "OUT", "--features", "DATA"], "item features are read from .json and"),
        (["train", "--data", "DATA", "--out", "OUT", "--backbone", "unisrec", "--text_vectors", "NOWHERE"],
         "not a folder of text vectors (manifest.json is missing); make one with `plr embed-text`"),
        (["train", "--data", "DATA", "--out", "DATA"], "cannot create the folder: a file of that name exists"),
        (["train", "--data", "DATA", "--out", "OUT", "--accelerator", "gpu", "--devices", "99"],
         "--accelerator gpu --devices 99 is not available"),
        (["train", "--data", "DATA", "--out", "OUT", "--seed", str(2**64)], "seed must be below 2^63"),
        (["embed-text", "missing.tsv", "--out", "OUT"], "missing.tsv: no such file of item texts"),
        (["embed-text", "DATA"], "--out is missing"),
        (["evaluate", "RUN", "--ks", "[5,0]"], "ks must be positive, one at least; found [5, 0]"),
        (["demo", "--seed", "-1", "--out", "OUT"], "seed must be 0 or more; found -1"),
        (["demo", "--seed", str(2**63), "--out", "OUT"], "seed must be below 2^63"),
        (["data", "show", "NOWHERE", "--seed", "-1"], "seed must be 0 or more; found -1"),
        (["data", "show", "NOWHERE", "--samples", "-1"], "samples must be 0 or more; found -1"),
        (["evaluate", "RUN", "--ks", "[]"], "ks must be positive, one at least; found []"),
        (["evaluate", "RUN", "--ks", f"[{10**20}]"], "ks must be below 10^18; found"),
        (["train", "--data", "DATA", "--out", "OUT", "--ks", f"[{10**20}]"], "ks must be below 10^18; found"),
        (["evaluate", "RUN", "--data", "missing.txt"], "--data missing.txt: no such file"),
        (["evaluate", "RUN", "--device", "nothing"], "--device nothing cannot be used: "),
        (["evaluate", "RUN", "--device", "meta"], "--device meta cannot be used: it computes nothing"),
        (["evaluate", "RUN", "--sampled", "0"], "sampled must be at least 1; found 0"),
        (["evaluate", "RUN", "--sampled", "5", "--seed", "-1"], "seed must be a whole number, 0 or more; found -1"),
        (["evaluate", "RUN", "--seed", "3"], "seed is of sampled, which is missing; found 3"),
        (["recommend", "RUN", "--history", "i1", "--category_field", "x"], "category_field is a field of categories"),
        (["evaluate", "RUN", "--history_edges", "[3]"], "give --by history with it"),
        (["evaluate", "RUN", "--by", "history", "--history_edges", "[3,2]"], "ascending whole numbers from 1; found"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message_and_status_2(arguments, message, run, small_data, tmp_path, capsys):
    places = {"RUN": run, "NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out", "DATA": small_data}
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("plr: ")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --nonsense 1",
         "plr train: unknown option --nonsense, the nearest known is --noise; see plr train --help"),
        ("train --epoch=3 --lrr -1 -2",
         "plr train: unknown option --epoch, the nearest known is --epochs; "
         "unknown option --lrr, the nearest known is --lr; see plr train --help"),
        ("evaluate RUN --dat x",
         "plr evaluate: unknown option --dat, the nearest known is --data; see plr evaluate --help"),
        ("recommend RUN --history i1 -q 3",
         "plr recommend: unknown option -q, the nearest known is -k; see plr recommend --help"),
        ("prepare FILE --cor 5",
         "plr prepare: unknown option --cor, the nearest known is --core; see plr prepare --help"),
        ("data show RUN --sample 1",
         "plr data show: unknown option --sample, the nearest known is --samples; see plr data show --help"),
        ("embed-text FILE --enc x",
         "plr embed-text: unknown option --enc, the nearest known is --encoder; see plr embed-text --help"),
        ("demo --sed 1", "plr demo: unknown option --sed, the nearest known is --seed; see plr demo --help"),
        ("systems --halp", "plr systems: unknown option --halp, the nearest known is --help; see plr systems --help"),
        ("--vers", "plr: unknown option --vers, the nearest known is --version; see plr --help"),
        ("evaluate RUN more", "plr evaluate: unexpected 'more'; see plr evaluate --help"),
        ("train --dim wide", "plr train: --dim must be a whole number; found wide; see plr train --help"),
        ("train --lr nan", "plr train: --lr must be a finite number; found nan; see plr train --help"),
        ("train --min_rating x", "plr train: --min_rating must be a finite number; found x; see plr train --help"),
        ("train --gate maybe", "plr train: --gate must be true or false; found maybe; see plr train --help"),
        ("train --precision 16", "plr train: --precision must be one of 32, bf16; found 16; see plr train --help"),
        ("evaluate RUN --by history age",
         "plr evaluate: --by must be one of history, popularity, novelty; found age; see plr evaluate --help"),
        ("evaluate RUN --ks 5",
         "plr evaluate: --ks must be a list such as [5,10]; found 5; see plr evaluate --help"),
        ("prepare DATA --out OUT --min_history [1,2]",
         "plr prepare: --min_history must be a whole number or a list of 3 whole numbers; found [1, 2]; "
         "see plr prepare --help"),
        ("recommend RUN --history i1 -k 2.5",
         "plr recommend: -k must be a whole number; found 2.5; see plr recommend --help"),
        ("recommend", "plr recommend: RUN must be given; see plr recommend --help"),
        ("data show", "plr data show: FOLDER must be given; see plr data show --help"),
    ],
)  # fmt: skip
def test_a_mistaken_option_is_one_line_that_says_what_is_accepted(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dim: 8\nnonsense: 1\n", "{}:2: unknown field 'nonsense', the nearest known is 'noise'"),
        ("# sizes\n\ndim: wide\n", "{}:3: dim must be a whole number; found wide"),
        ("dim: 8\nks: 5\n", "{}:2: ks must be a list such as [5,10]; found 5"),
        ("dim: 8\n", "--dim must be a whole number; found wide"),  # what is wrong is not the file
        (None, "--config {}: no such file"),
        ("", "--config {}: not a file"),
    ],
)
def test_a_field_of_a_file_is_named_with_its_line(content, message, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    if content:
        file.write_text(content)
    elif content is not None:
        file.mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", str(file), "--lr", "0.1", *(["--dim", "wide"] if "--dim" in message else [])])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"plr train: {message.format(file)}; see plr train --help\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dim: 8\nsteps: 2\ndim: 16\n", "{}:3: not valid YAML: 'dim' occurs a second time"),
        (b"ks: [5\n", "{}:2: not valid YAML: expected ',' or ']'"),
        (b"dim: \xff\n", "{}: not UTF-8 text"),
        (b"- dim\n", "{}: expected a mapping, lines of 'field: value'; found ['dim']"),
        (b"", "{}: expected a mapping, lines of 'field: value'; found nothing"),
        (b"8: dim\n", "{}: expected a mapping, lines of 'field: value'; found {{8: 'dim'}}"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_its_line(content, message, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", str(file)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"plr train: {message.format(file)}")
    assert error.count("\n") == 1
    with pytest.raises(ConfigError, match=re.escape(message.format(file))):
        Config.load(file)


@pytest.mark.parametrize(
    ("lines", "devices", "message"),
    [
        ("a 1 2\nb 2 3\n", 1, "the leave-one-out split leaves 0 rows for valid; at least 1 is required"),
        ("a 1 2 3 4\nb 2 3 4 5\n", 3, "leaves 2 rows for valid; at least 3 are required for 3 devices"),
        ("a 1 2 3 4\nb 2 3 4\nc 1 2 3\n", 3, "leaves 1 rows for train; at least 3 are required for 3 devices"),
    ],
)
def test_data_with_too_few_rows_are_refused_before_anything_is_written(lines, devices, message, tmp_path, capsys):
    (tmp_path / "data.txt").write_text(lines)
    arguments = ["--data", str(tmp_path / "data.txt"), "--out", str(tmp_path / "out"), "--devices", str(devices)]
    assert main(["train", *arguments, "--method", "base", "--accelerator", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists()


def _with_other_items(content):
    """The run's items in another order: nothing but a hash can tell."""
    file = io.BytesIO()
    pl.read_parquet(content).reverse().write_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("model.safetensors", lambda content: content[:1000], "model.safetensors: no readable weights"),
        ("model.safetensors", None, "model.safetensors: no readable weights"),
        ("config.yaml", lambda content: content.replace(b"dim: 16\n", b"dim: 8\n"), "not the weights of the model in"),
        ("config.yaml", lambda content: content.replace(b"dim: 16\n", b"dim: wide\n"),
         "config.yaml: dim must be a whole number; found 'wide'"),
        ("items.parquet", lambda content: content[:50], "items.parquet: not the run's item ids"),
        ("items.parquet", None, "items.parquet: not the run's item ids"),
        ("items.parquet", lambda content: _with_other_items(content), "items.parquet: not as the run wrote it"),
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]),
         "model.safetensors: not as the run wrote it"),
        ("metrics.json", lambda content: content[:100], "metrics.json: not the run's metrics"),
        ("metrics.json", lambda content: b"", "metrics.json: not the run's metrics"),
        ("metrics.json", lambda content: b"[]", "metrics.json: not the run's metrics: its JSON is not an object"),
        ("metrics.json", lambda content: b'{"files": 1}', "metrics.json: not the run's metrics: its JSON is not an"),
        ("metrics.json", lambda content: b'{"files": {}}', "metrics.json: not the run's metrics: it holds none of"),
        ("model.safetensors", lambda content: b"", "model.safetensors: no readable weights"),
        ("items.parquet", lambda content: b"", "items.parquet: not the run's item ids"),
        ("config.yaml", lambda content: b"", "config.yaml: expected a mapping"),
        ("config.yaml", lambda content: content[:40] + b"\xff" + content[40:], "config.yaml: not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_message(name, changed, message, run, tmp_path, capsys):
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    if changed is None:
        (damaged / name).unlink()
    else:
        (damaged / name).write_bytes(changed((damaged / name).read_bytes()))
    assert main(["evaluate", str(damaged)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("plr: ")
    assert "Traceback" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reward", "mrr", "reward must be one of recall, ndcg; found 'mrr'"),
        ("lares_adapter", "sum", "lares_adapter must be one of mean, concat, gate; found 'sum'"),
        ("dim", 16.0, "dim must be a whole number; found 16.0"),
        ("steps", True, "steps must be a whole number; found True"),
        ("gate", "no", "gate must be true or false; found 'no'"),
        ("lr", "1e-3", "lr must be a number; found '1e-3'"),
        ("ks", [5, "10"], "ks must be a list of whole numbers"),
        ("ks", [True], "ks must be a list of whole numbers"),
        ("data", 5, "data must be a string or a path; found 5"),
        ("features", 5, "features must be a string or a path; found 5"),
        ("min_rating", float("nan"), "min_rating must be a finite number; found nan"),
    ],
)
def test_values_of_another_kind_are_refused_in_python_too(field, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**{field: value})


def test_paths_and_numbers_of_numpy_are_configured_as_pythons(tmp_path):
    config = Config(data=tmp_path / "data", out=tmp_path, dim=np.int64(8), lr=np.float32(0.5), ks=[np.int64(5)], clip=1)
    config.save(tmp_path / "config.yaml")
    read = Config.load(tmp_path / "config.yaml")
    assert read == config
    assert (read.data, read.dim, read.lr, read.ks) == (str(tmp_path / "data"), 8, 0.5, (5, 10))


def test_too_little_memory_is_one_message(small_data, tmp_path, capsys):
    arguments = ["--data", str(small_data), "--out", str(tmp_path / "run"), "--dim", str(10**13), "--method", "base"]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plr: too little memory (")
    assert "lower --batch_size" in error
    assert error.count("\n") == 1


def test_texts_become_vectors_and_vectors_a_run(small_data, tmp_path, capsys):
    titles = tmp_path / "titles.tsv"
    titles.write_text("item\ttitle\n" + "".join(f"i{n}\tnumber n{n} n{(n + 1) % 24}\n" for n in range(23)))
    vectors, out = tmp_path / "vectors", tmp_path / "run"
    assert main(["embed-text", str(titles), "--out", str(vectors), "--dim", "20"]) == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "23 items, vectors of width 20 by tfidf from title" in printed
    status = main(
        ["train", "--data", str(small_data), "--backbone", "unisrec", "--text_vectors", str(vectors), "--method",
         "base", "--out", str(out), "--dim", "8", "--epochs", "1", "--batch_size", "32", "--progress", "false"]
    )  # fmt: skip
    assert status == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "no text vector" in line]
    assert said == ["plr: 1 of 24 items have no text vector; they share one learned vector for that"]
    assert Config.load(out / "config.yaml").temperature == 0.07
    assert main(["recommend", str(out), "--history", "i1 i2", "-k", "3"]) == 0
    assert main(["embed-text", str(titles), "--out", str(vectors)]) == 2
    assert "there is something here already" in capsys.readouterr().err


def test_systems_names_every_backbone_method_and_refusal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # no sentence is broken
    assert main(["systems"]) == 0
    printed = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for name in (*BACKBONES, *METHODS):
        assert f" {name} " in printed
    for (backbone, method), reason in REFUSALS.items():
        assert f"{backbone} with" in printed
        assert method in printed
        assert reason.split(";")[0].split(",")[0] in printed
    for entry in (*BACKBONES.values(), *METHODS.values()):
        assert entry.description


def test_paths_and_ids_are_printed_as_they_are(tmp_path, capsys):
    """Not as a pattern of file names, and not as rich's markup, in which [/b] is a mistake."""
    folder = tmp_path / "a[1]*?" / "[red]b[/i]c" / ("long" * 20)
    items = ["[red]one", "[/b]", "日本", "🙂", "[bold]two[/bold]", "-5", "null"]
    lines = [f"[/u]{user} {' '.join(items[(user + step) % 7] for step in range(5))}\n" for user in range(40)]
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "titles.tsv").write_text("item\ttitle\n" + "".join(f"{item}\tword\n" for item in items), encoding="utf-8")
    prepared, vectors, out = (str(folder / name) for name in ("prepared", "vectors", "run"))
    small = ["--dim", "8", "--ffn_dim", "8", "--epochs", "1", "--batch_size", "32", "--progress", "false"]
    for arguments, said in (
        (["prepare", str(folder / "data.txt"), "--out", prepared], f"train with plr train --data '{prepared}'\n"),
        (["data", "show", prepared], f"{prepared}: as it was written"),
        (["embed-text", str(folder / "titles.tsv"), "--out", vectors], f"saved in {vectors}"),
        (["train", "--data", prepared, "--backbone", "unisrec", "--text_vectors", vectors, "--method", "base",
          "--out", out, *small], f"saved in {out}"),
        (["evaluate", out], f"40 test rows of {prepared}; all 7 items"),
    ):  # fmt: skip
        assert main(arguments) == 0
        assert said in capsys.readouterr().out
    assert len(load_ranking(RunFolder(Path(out)).ranks("test"))) == 40
    assert main(["recommend", out, "--history", "[/b] 日本"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {item} " in printed for item in items)


def test_no_id_is_cut_off_where_the_screen_ends(capsys):
    ids = [f"https://example.org/{'a' * 90}{end}" for end in "xy"]
    Console(width=60).print(recommendation_table([Recommendation(each, 0.5) for each in ids]))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "".join(line.split("│")[2].strip() for line in printed.splitlines() if "│" in line) == "".join(ids)


def test_ids_that_the_terminal_cannot_show_are_escaped(small_data, tmp_path, monkeypatch):
    data = tmp_path / "data.txt"
    data.write_text(small_data.read_text().replace("i3 ", "日本 "), encoding="utf-8")
    arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--dim", "8", "--epochs", "1"]
    assert main(["train", *arguments, "--method", "base", "--progress", "false"]) == 0
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main(["recommend", str(tmp_path / "run"), "--history", "i1", "-k", "24"]) == 0
    assert b"\\u65e5\\u672c" in terminal.buffer.getvalue()


def test_unknown_items_can_be_skipped(run, capsys):
    answers = []
    for history in ("i3 nothing i4", "i3 i4"):
        assert main(["recommend", str(run), "--history", history, "--unknown", "skip", "-k", "3"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_names_are_found_in_the_data_folder(small_data, tmp_path, monkeypatch):
    from plr.errors import DataError
    from plr.inputs import resolve

    monkeypatch.setenv("PLR_DATA", str(small_data.parent))
    assert resolve("ring") == small_data
    with pytest.raises(DataError, match="no such file; tried square"):
        resolve("square")


def test_the_entry_point_looks_for_garbage_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plr", "--version"])
    with pytest.raises(SystemExit):
        plr.__main__.main()
    assert gc.isenabled()
    gc.unfreeze()


def test_no_command_and_a_number_with_a_full_stop(capsys):
    for arguments, message in (([], "but it was not provided; see"), (["recommend", "r", "-k", "2."], "found 2.; see")):
        with pytest.raises(SystemExit):
            main([*arguments, *(["--history", "a"] if arguments else [])])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "a.csv", "--out", "run"],
        ["evaluate", "run"],
        ["recommend", "run", "--history", "a"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unusable_setting_of_the_operators_is_one_message(arguments, tmp_path):
    setting = "PLR_KERNELS_BACKEND"  # the others are read where this one is
    environment = os.environ | {setting: "nonsense", "PYTHONPATH": str(Path(plr.__file__).parents[1])}
    command = [sys.executable, "-m", "plr", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(rf"plr: {setting}: .* must be one of auto, .*; found 'nonsense'\n", done.stderr), done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_run_is_one_message(run, monkeypatch, capsys):
    monkeypatch.setattr(backend, "_selected", "triton")
    monkeypatch.setattr(backend, "TRITON_INTERPRETED", False)
    assert main(["recommend", str(run), "--history", "i3 i4"]) == 2
    assert re.fullmatch(
        r"plr: backend 'triton' cannot run stream_attention: it takes GPU tensors, found one on cpu\. .*=auto, .*\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("written", "arguments", "expected"),
    [
        ({"method": "base"}, ["--method", "plr"], (0.0, 0.0, 1.0, "none")),
        ({"method": "plr"}, ["--mixture", "states"], (0.1, 1.0, 0.02, "ranking")),
        ({"method": "plr", "mixture": "states"}, [], (0.1, 1.0, 0.02, "ranking")),
        ({"method": "plr", "kl_weight": 0.3}, ["--mixture", "states"], (0.3, 1.0, 0.02, "ranking")),
        ({"method": "plr"}, ["--kl_weight", "0.2"], (0.2, 0.0, 1.0, "none")),
    ],
)
def test_defaults_of_a_runs_method_are_not_taken_for_choices(written, arguments, expected, tmp_path):
    """A run's config.yaml says what was used; given back with another method or mixture, that one's defaults count."""
    path = tmp_path / "config.yaml"
    Config(**written, provenance={"plr": "0"}).save(path)
    found = Config(**_train_values(["--config", str(path), *arguments]))
    assert (found.kl_weight, found.contrastive_weight, found.trigger_std, found.fast_state) == expected


def _train_values(arguments):
    from plr.cli.program import _parser

    values = _parser(["train"]).parse_args(["train", *arguments])["train"].as_dict()
    return {name: value for name, value in values.items() if name not in ("config", "preset")}
