"""The table of answers beside RecTools', with a stand-in for its process."""

from __future__ import annotations

import json
import stat
import sys

import pytest

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench import inference_rectools

SMALL = ["--items", "60", "--dims", "16", "--users", "1", "3", "--seconds", "0"]
PEER = """#!{python}
import json, sys
print("a library says something")
print(json.dumps({{"rectools": "0.19.0", "torch": "2.0"}}), flush=True)
for line in sys.stdin:
    form, users = line.split()
    print(json.dumps({{"seconds": {seconds}, "rows": int(users) * {k}}}), flush=True)
"""


@pytest.fixture
def peer(tmp_path):
    def make(k=inference_rectools.K, seconds="2.0 if form == 'construct' else 1.0"):
        path = tmp_path / "python"
        path.write_text(PEER.format(python=sys.executable, k=k, seconds=seconds))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def test_a_row_for_each_number_of_users(peer, tmp_path):
    out, python = tmp_path / "found.json", peer()
    inference_rectools.main([*SMALL, "--peer-python", python, "--out", str(out)])
    record = json.loads(out.read_text())
    assert python not in out.read_text()
    assert record["peer"] == {"rectools": "0.19.0", "torch": "2.0"}
    assert [row["users"] for row in record["rows"]] == [1, 3]
    for row in record["rows"]:
        assert (row["recommend_ms"], row["construct_ms"]) == (1000, 2000)
        for form, seconds in (("recommend", 1.0), ("construct", 2.0)):
            low, median, high = row[f"{form}_over_lists"]
            assert 0 < low <= median <= high
            assert median == pytest.approx(1e3 * seconds / row["lists_ms"], rel=0.5)
    assert len(out.with_suffix(".md").read_text().splitlines()) == 8


def test_a_peer_that_answers_otherwise_or_ends_is_no_peer(peer, tmp_path):
    out = tmp_path / "found.json"
    with pytest.raises(inference_rectools.PeerError, match="returned 9 rows for 1 users, not 10"):
        inference_rectools.main([*SMALL, "--peer-python", peer(k=9), "--out", str(out)])
    with pytest.raises(inference_rectools.PeerError, match="the peer ended with status 1"):
        inference_rectools.main([*SMALL, "--peer-python", peer(seconds="missing"), "--out", str(out)])
    assert not out.exists()
