"""The measurements of preparing data, on ten thousand interactions: every process runs, every stage is found."""

from __future__ import annotations

import json
import sys

import pytest

from bench import prepare_hashing, prepare_partitions
from bench.prepare import WHAT, bench, generate, markdown, measure
from bench.prepare_stages import STAGES
from bench.prepare_stages import markdown as stages_markdown

ROWS = 10_000


def test_every_process_runs_and_has_a_line(tmp_path, capsys):
    result = bench(ROWS, "time", tmp_path / "files", None, 1)
    assert not [name for name, one in result.items() if isinstance(one, dict) and "failed" in one]
    assert result["plr_open"]["interactions"] <= ROWS
    table = markdown([result])
    assert all(f"| {ROWS:,} | time | {name} |" in table for name in WHAT if name in result)
    assert not list((tmp_path / "files").iterdir())


def test_a_process_that_fails_is_recorded():
    assert measure([sys.executable, "-c", "raise SystemExit(3)"], 2) == {"failed": 3}


@pytest.mark.parametrize("order", ["time", "user"])
def test_every_stage_takes_time(tmp_path, order):
    file = tmp_path / "some.csv"
    generate(file, ROWS, order)
    command = [sys.executable, "-m", "bench.prepare_stages", "--one", str(file), str(tmp_path / "out")]
    stages = json.loads(measure(command, 1)["printed"].splitlines()[-1])
    # A log in time order is split by time, users' histories one after the other leave one out; nothing is filtered.
    assert list(stages) == [*STAGES, "everything else"]
    assert stages["reading: parsing lines and numbers"][1] > 0
    assert stages["writing"][1] > 0
    record = {"results": [{"rows": ROWS, "order": order, "polars_read": [1.0, 1.0], "stages": stages}], "metadata": {}}
    assert stages_markdown(record).count("\n| ") == 3 + len(stages)


def test_partitions_write_what_memory_does(tmp_path, capsys):
    result = prepare_partitions.bench(ROWS, "time", tmp_path, [0, 3], ["--core", "2"], 2)
    assert [run["partitions"] for run in result["runs"]] == [0, 3, 0, 3]
    assert all(run["peak_bytes"] > 0 for run in result["runs"])
    assert [path.name for path in tmp_path.iterdir()] == [f"time-{ROWS}.csv"]


def test_hashing_is_all_that_is_left_out(tmp_path, capsys):
    result = prepare_hashing.bench(ROWS, "user", tmp_path, 1)
    assert result["medians"]["plr_prepare_unhashed"]["wall"] > 0
    unhashed, hashed = tmp_path / "prepared", tmp_path / "hashed"
    command = [sys.executable, "-m", "plr", "prepare", str(tmp_path / f"user-{ROWS}.csv"), "--out", str(hashed)]
    assert "failed" not in measure(command, 1)
    for name in ("sequences.safetensors", "users.parquet", "items.parquet"):
        assert (hashed / name).read_bytes() == (unhashed / name).read_bytes()
    assert json.loads((unhashed / "manifest.json").read_text())["files"]["users.parquet"]["sha256"] == "0" * 64
