"""Ranks by the model and by the engine, at a tiny size."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench import rank_with
from plr.config import Config
from plr.training import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that the engine takes, and one of LARES, which it does not."""
    folder = tmp_path_factory.mktemp("runs")
    walks = [[(user + step * (1 + user % 3)) % 12 for step in range(5 + user % 4)] for user in range(40)]
    lines = [f"u{user} {' '.join(map(str, walk))}\n" for user, walk in enumerate(walks)]
    (folder / "walks.txt").write_text("".join(lines))
    common = {"data": str(folder / "walks.txt"), "dim": 8, "ffn_dim": 8, "max_length": 6, "layers": 1, "epochs": 1,
              "progress": False, "accelerator": "cpu", "threads": 1}  # fmt: skip
    for method in ("base", "lares"):
        train(Config(out=str(folder / method), method=method, **common))
    return folder


def test_a_row_for_each_run(runs, tmp_path):
    out = tmp_path / "found.json"
    rank_with.main([str(runs / "base"), "--rounds", "2", "--record", "--out", str(out)])
    record = json.loads(out.read_text())
    [row] = record["rows"]
    assert (row["users"], row["items"], row["dim"]) == (40, 12, 8)
    assert 0 < row["faster"][0] <= row["faster"][1] <= row["faster"][2]
    assert row["ranks_that_differ"] == row["by_at_most"] == row["of_the_first"] == 0
    assert str(runs) not in record["command"]
    assert len(out.with_suffix(".md").read_text().splitlines()) == 6 + len(record["rows"])


def test_ranks_that_differ_are_counted(runs, monkeypatch):
    ranked = rank_with.rank_rows

    def one_worse(model, batches, *, exclude_seen, scorer_of):
        found = ranked(model, batches, exclude_seen=exclude_seen, scorer_of=scorer_of)
        if scorer_of is not None:
            found.ranks[0] += 3
        return found

    monkeypatch.setattr(rank_with, "rank_rows", one_worse)
    row = rank_with.measured(runs / "base", 1)
    assert (row["ranks_that_differ"], row["by_at_most"], row["of_the_first"]) == (1, 3, 1)


def test_a_run_that_the_engine_cannot_take_is_named(runs):
    with pytest.raises(SystemExit, match="lares: the engine cannot take it: "):
        rank_with.main([str(runs / "lares")])


def test_no_rounds_are_refused(runs, capsys):
    with pytest.raises(SystemExit):
        rank_with.main([str(runs / "base"), "--rounds", "0"])
    assert "--rounds must be at least 1; found 0" in capsys.readouterr().err
