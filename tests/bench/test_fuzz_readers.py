"""A few random files, written by several rules and damaged: read as Python's csv module reads them, or refused."""

from __future__ import annotations

import warnings

import pytest

from bench.fuzz_readers import TRUSTED, WRITERS, check, make
from plr.prepare.readers.quotes import RecordScan


@pytest.mark.parametrize("first", [0, 100, 200, 300])
def test_same_rows_or_a_refusal(tmp_path, first):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [(seed, *check(seed, tmp_path)) for seed in range(first, first + 100)]
    assert [each for each in found if each[2] is not None] == []
    read = [outcome for _, outcome, _ in found if outcome.endswith(": read")]
    assert len(read) > 10
    assert len(read) < 90


FOUND = {
    7009611: "a separator between the quotes of two unquoted fields",
    8013987: "backslashes that are right by RFC 4180 with another meaning",
    8016869: "two ends of lines and nothing else",
    9095042: "a record of two lines whose time is wrong, left out",
    10069271: "backslashes that are right by RFC 4180, with fewer lines left out than were written",
}


@pytest.mark.parametrize("seed", FOUND, ids=FOUND.get)
def test_what_long_runs_have_found(tmp_path, seed):
    assert check(seed, tmp_path)[1] is None


def test_all_writers_occur():
    made = [make(seed) for seed in range(200)]
    assert {one.how.removesuffix(", damaged") for one in made} == set(WRITERS)
    assert set(TRUSTED) < set(WRITERS)
    assert any(one.rows is None for one in made)


def test_lost_lines_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr(RecordScan, "check", lambda self, parsed: None)  # as it was before quotes were followed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert any(check(seed, tmp_path)[1] is not None for seed in range(1000))
