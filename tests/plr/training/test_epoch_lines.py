"""What a training prints as it goes on: a bar on a terminal, elsewhere a line for each epoch."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from plr.config import Config
from plr.training import epoch_lines, train

VALIDATED = re.compile(r"epoch (\d) of 4: loss (\d\.\d{4}), validation ndcg@10 (0\.\d{4}) \((.*)\), \d+ s(, .*)?")
REFIT = re.compile(r"refit, epoch (\d) of \d: loss \d\.\d{4}, \d+ s(, .*)?")


@pytest.fixture
def config(quick):
    return Config(**{**quick, "epochs": 4, "progress": True, "refit": True}, method="base")


@pytest.mark.parametrize("lr", [0.01, 1e-12], ids=["that learns", "that stays as good as it was"])
def test_a_line_for_each_epoch_where_there_is_no_terminal(lr, config, capsys):
    result = train(replace(config, lr=lr))
    lines = capsys.readouterr().out.splitlines()
    logged = pl.read_csv(next(Path(config.out).glob("logs/csv/*/metrics.csv"))).drop_nulls("ndcg@10")
    best, best_epoch = 0.0, 0
    for number, (line, row) in enumerate(zip(lines, logged.iter_rows(named=True), strict=False), start=1):
        epoch, loss, value, place, left = VALIDATED.fullmatch(line).groups()
        assert int(epoch) == number
        assert abs(float(loss) - row["loss"]) < 1e-4
        assert abs(float(value) - row["ndcg@10"]) < 1e-4
        better = row["ndcg@10"] > best
        assert place == ("the best so far" if better else f"best {best:.4f}, epoch {best_epoch}")
        if better:
            best, best_epoch = row["ndcg@10"], number
        assert (left is None) == (number == 4)
        assert left is None or re.fullmatch(rf", {4 - number} left at most, about \d+ (s|min)", left)
    assert best_epoch == result["best_epoch"]
    assert (best_epoch > 1) == (lr == 0.01)
    assert [int(REFIT.fullmatch(line)[1]) for line in lines[4:]] == [*range(1, best_epoch + 1)]


def test_a_bar_on_a_terminal(config, capfd, monkeypatch):
    monkeypatch.setattr(epoch_lines, "draws_bars", lambda: True)
    monkeypatch.setattr("plr.training.trainer.draws_bars", lambda: True)
    train(config)
    printed = capfd.readouterr()
    assert "Epoch 3: 100%" in printed.out + printed.err
    assert "epoch 4 of 4" not in printed.out


def test_where_bars_are_drawn(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert epoch_lines.draws_bars()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not epoch_lines.draws_bars()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert epoch_lines.draws_bars()


def test_nothing_where_no_progress_is_wanted(quick, capsys):
    train(Config(**{**quick, "epochs": 1}, method="base"))
    assert capsys.readouterr().out == ""
