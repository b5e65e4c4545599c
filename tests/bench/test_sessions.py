"""Sessions together and alone, at a tiny size."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench import sessions
from plr.serving import Recommender

SMALL = ["--items", "60", "--dims", "16", "--sessions", "2", "5", "--seconds", "0"]


def test_a_row_for_each_number_of_sessions_and_one_for_appending(tmp_path):
    out = tmp_path / "found.json"
    sessions.main([*SMALL, "--record", "--out", str(out)])
    record = json.loads(out.read_text())
    rows = [(row["system"], row.get("sessions")) for row in record["rows"]]
    assert rows == [(system, count) for system in ("sasrec", "plr") for count in (None, 2, 5)]
    for row in record["rows"]:
        low, median, high = row["ratio"]
        assert 0 < low <= median <= high
    assert len(out.with_suffix(".md").read_text().splitlines()) == 6 + len(rows)


def test_what_answers_otherwise_is_not_timed(tmp_path, monkeypatch):
    answers = Recommender.recommend_sessions
    monkeypatch.setattr(Recommender, "recommend_sessions", lambda *given, **options: answers(*given, **options)[::-1])
    with pytest.raises(AssertionError, match="answers differ in round 0"):
        sessions.main([*SMALL, "--record", "--out", str(tmp_path / "found.json")])
    assert not (tmp_path / "found.json").exists()
