"""The documented job on Ray writes what plr prepare writes; tried where the extra is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from plr.prepare import PrepareOptions, write_folder

ROOT = Path(__file__).parents[3]
JOB = ROOT / "docs" / "prepare_with_ray.py"
pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture
def files(tmp_path):
    """Two files of interactions that begin in neither order, with ids that are not ASCII and equal times."""
    random = np.random.Generator(np.random.PCG64(0))
    count = 5000
    frame = pl.DataFrame(
        {
            "who": [f"{'é' if user % 7 else 'u'}{user}" for user in (random.random(count) ** 2 * 300).astype(int)],
            "what": [f"i{item}" for item in random.integers(0, 90, count)],
            "stars": random.integers(1, 6, count).astype(float),
            "when": 1_600_000_000 + random.integers(0, 50, count),
        }
    )
    frame[:2000].write_parquet(tmp_path / "a-0.parquet")
    frame[2000:].write_parquet(tmp_path / "a-1.parquet", row_group_size=500)
    return sorted(tmp_path.glob("a-*.parquet"))


def job(files: list[Path], out: Path, *more: str) -> subprocess.CompletedProcess:
    names = ["--user", "who", "--item", "what", "--rating", "stars", "--timestamp", "when", "--partitions", "3"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(JOB), str(files[0].with_name("a-*.parquet")), "--out", str(out), *names, *more]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd=out.parent
    )


def test_the_folder_is_that_of_plr_prepare(files, tmp_path):
    options = {"core": 3, "min_rating": 2, "low_rated": "history"}
    ended = job(files, tmp_path / "ray", "--options", json.dumps(options))
    assert ended.returncode == 0, ended.stderr
    columns = {"user_column": "who", "item_column": "what", "rating_column": "stars", "timestamp_column": "when"}
    write_folder(files, tmp_path / "ours", PrepareOptions(**options, **columns))
    for name in ("sequences.safetensors", "users.parquet", "items.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes(), name
    ours, theirs = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("ours", "ray"))
    for report in (ours["report"], theirs["report"]):
        assert report["interactions"] > 1000
        for name in columns:
            report["options"][name] = None
    assert ours["report"] == theirs["report"]


def test_a_missing_value_stops_it_and_nothing_is_left(files, tmp_path):
    pl.DataFrame({"who": ["a", None], "what": ["b", "c"], "stars": [1.0, 2.0], "when": [1, 2]}).write_parquet(files[1])
    ended = job(files, tmp_path / "ray")
    assert ended.returncode == 1
    assert f"{files[1]}:2: column 'who' has no value" in ended.stderr
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a-0.parquet", "a-1.parquet"]
