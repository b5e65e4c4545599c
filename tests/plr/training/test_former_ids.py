"""Runs, folders and caches made when the white space around ids was kept are not taken for what is read now."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from plr.config import Config
from plr.data import open_prepared, prepare
from plr.errors import DataError, RunError
from plr.prepare import PrepareOptions, write_folder
from plr.serving.evaluate import evaluate_run
from plr.training import train

pytestmark = pytest.mark.filterwarnings("ignore:the white space around")


@pytest.fixture
def blank_data(tmp_path):
    """Interactions of which every third user's items have a blank behind their ids."""
    lines = ["user_id,item_id,timestamp"]
    for user in range(40):
        for step in range(6):
            blank = " " * (user % 3 == 0)
            lines.append(f"u{user},i{(user + step) % 12}{blank},{1_600_000_000 + 100 * user + step}")
    path = tmp_path / "blanks.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def former(monkeypatch):
    """Read as before: ids as they stand in the file."""
    with monkeypatch.context() as patch:
        patch.setattr("plr.prepare.interactions.trimmed", lambda ids, rank: (ids, rank))
        yield patch


def configuration(quick, data, **changes):
    return Config(**{**quick, "data": str(data), "split": "leave-one-out", "epochs": 1, "method": "base", **changes})


def test_the_blanks_make_other_items(blank_data, former):
    assert prepare(blank_data, split="leave-one-out").num_items == 24
    former.undo()
    assert prepare(blank_data, split="leave-one-out").num_items == 12


def test_a_finished_run_is_not_measured_with_other_numbers(blank_data, former, quick):
    config = configuration(quick, blank_data)
    train(config)
    expected = evaluate_run(Path(config.out)).metrics
    former.undo()
    with pytest.raises(DataError, match=r"blanks.csv are read otherwise than when .*; give it as --data"):
        evaluate_run(Path(config.out))
    again = evaluate_run(Path(config.out), data=str(blank_data))
    assert again.metrics.keys() == expected.keys()


def test_an_unfinished_run_is_not_resumed_on_other_items(blank_data, former, quick):
    config = configuration(quick, blank_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plr.training.trainer.write_metrics", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    former.undo()
    with pytest.raises(RunError, match=r"holds an unfinished run on other items: .* are read otherwise"):
        train(config)


def test_a_folder_and_a_cache_are_made_again(blank_data, former, tmp_path):
    options = PrepareOptions(split="leave-one-out")
    write_folder([blank_data], tmp_path / "folder", options)
    prepare(blank_data, cache_dir=tmp_path / "cache", split="leave-one-out")
    former.undo()
    write_folder([blank_data], tmp_path / "folder", options)
    assert open_prepared(tmp_path / "folder").num_items == 12
    with pytest.warns(UserWarning, match="cannot be used and is built again: its ids have white space around them"):
        assert prepare(blank_data, cache_dir=tmp_path / "cache", split="leave-one-out").num_items == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the white space around")
        assert prepare(blank_data, cache_dir=tmp_path / "cache", split="leave-one-out").num_items == 12
