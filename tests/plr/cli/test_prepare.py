"""The commands `plr prepare` and `plr data show`, and training on what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from plr.cli import main
from plr.config import Config
from plr.data import prepare
from plr.errors import ConfigError
from plr.inputs import load_dataset

ROWS = "user,item,rating,timestamp\n" + "".join(
    f"u{n % 17},i{n * 7 % 29},{1 + n % 5},{1_600_000_000 + n}\n" for n in range(400)
)


@pytest.fixture
def ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text(ROWS)
    return path


def test_prepare_then_show(ratings, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"item": f"i{n}", "title": f"[red] Title {n}"}) + "\n" for n in range(20)))
    out = tmp_path / "out"
    arguments = ["prepare", str(ratings), "--out", str(out), "--items", str(items), "--min_rating", "2", "--core", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "min_rating 2.0" in printed
    assert "-80" in printed
    assert "items with title" in printed
    assert main(["data", "show", str(out), "--plots", str(tmp_path / "plots"), "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert "as it was written" in printed
    assert printed.count(" interactions:") == 2
    assert "[red] Title" in printed
    for name in ("lengths.png", "popularity.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert main(["data", "show", str(out), "--samples", "0"]) == 0
    assert main([*arguments]) == 0  # the histograms beside it make it no other folder


def test_pytorch_is_not_waited_for(ratings, tmp_path):
    code = "import sys; from plr.cli import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    for source, status in ((ratings, 0), (tmp_path / "none.csv", 2)):
        command = [sys.executable, "-c", code, "prepare", str(source), "--out", str(tmp_path / "out")]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert printed.splitlines()[-1] == f"{status} False"


def test_mistakes_are_one_message(ratings, tmp_path, capsys, monkeypatch):
    assert main(["prepare", str(ratings)]) == 2
    assert "--out is missing" in capsys.readouterr().err
    monkeypatch.chdir(ratings.parent)  # which holds a file of a usual name
    assert main(["prepare", "", "--out", str(tmp_path / "o")]) == 2  # a variable of the shell that is not set, say
    assert "the source is empty" in capsys.readouterr().err
    assert main(["prepare", str(ratings), "--out", str(tmp_path / "o"), "--low_rated", "history"]) == 2
    assert "needs min_rating" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    assert "no such file" in capsys.readouterr().err
    ratings.write_text(ROWS + "u1,i1,1,late\n")
    assert main(["prepare", str(ratings), "--out", str(tmp_path / "o")]) == 2
    assert f"{ratings}:402: " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main(["data", "show", str(tmp_path)]) == 2
    assert "not a prepared data set" in capsys.readouterr().err


def test_an_interruption_is_one_line(ratings, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("plr.cli.commands.prepare", interrupt)
    assert main(["prepare", str(ratings), "--out", str(tmp_path / "o")]) == 130
    assert capsys.readouterr().err == "\nplr: interrupted\n"


@pytest.mark.parametrize("option", ["--samples", "--seed"])
def test_show_takes_no_negative_number(option, tmp_path, capsys):
    assert main(["data", "show", str(tmp_path), option, "-1"]) == 2
    assert capsys.readouterr().err == f"plr: {option[2:]} must be 0 or more; found -1\n"


def test_a_pipe_is_neither_file_nor_folder(tmp_path, capsys):
    os.mkfifo(tmp_path / "ratings")
    assert main(["prepare", str(tmp_path / "ratings"), "--out", str(tmp_path / "o")]) == 2
    assert "neither a file nor a folder" in capsys.readouterr().err


def test_bad_lines_are_skipped_and_named(ratings, tmp_path, capsys):
    ratings.write_text(ROWS + "u1,i1,1,late\n")
    assert main(["prepare", str(ratings), "--out", str(tmp_path / "o"), "--skip-bad-lines"]) == 0
    printed = capsys.readouterr().out
    assert "1 lines were left out" in printed
    assert "ratings.csv:402: column 'timestamp' has the value 'late'" in printed
    assert main(["data", "show", str(tmp_path / "o")]) == 0
    assert "ratings.csv:402" in capsys.readouterr().out


def test_min_history_is_one_number_or_three(ratings, tmp_path):
    for name, value in (("a", "3"), ("b", "[3,3,3]")):
        assert main(["prepare", str(ratings), "--out", str(tmp_path / name), "--min_history", value]) == 0
    hashes = {json.loads((tmp_path / name / "manifest.json").read_text())["content_hash"] for name in "ab"}
    assert len(hashes) == 1


def test_training_takes_a_prepared_folder(ratings, tmp_path, quick, capsys):
    out = tmp_path / "prepared"
    assert main(["prepare", str(ratings), "--out", str(out)]) == 0
    config = Config(**{**quick, "data": str(out), "epochs": 1})
    dataset = load_dataset(config)
    assert dataset.content_hash == prepare(ratings).content_hash
    flags = [part for name, value in quick.items() if name != "data" for part in (f"--{name}", str(value).lower())]
    flags[flags.index("--out") + 1] = quick["out"]
    assert main(["train", "--data", str(out), *flags, "--epochs", "1"]) == 0
    assert main(["evaluate", quick["out"]]) == 0
    assert main(["evaluate", quick["out"], "--data", str(ratings)]) == 0
    with pytest.raises(ConfigError, match=r"is prepared already; core, split must be given to plr prepare"):
        load_dataset(Config(**{**quick, "data": str(out), "core": 2, "split": "time"}))


def test_help_says_what_each_option_does(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "interactions rated lower: drop them, or keep them in histories" in printed
    assert "fetch the files to the folder raw first" in printed
