"""What the documented job on Ray reads is what plr prepare reads, or a refusal; Ray itself is not needed for that."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from plr.errors import DataError
from plr.prepare import PrepareOptions

JOB = Path(__file__).parents[3] / "docs" / "prepare_with_ray.py"
GOOD = {"user": ["u", "v"], "item": ["a", "b"], "rating": [4.0, 5.0], "timestamp": [1, 2]}


@pytest.fixture
def job(monkeypatch):
    """The job as a module, where Ray is replaced by what marks a function to run anywhere."""
    ray = ModuleType("ray")
    ray.remote = lambda function: function
    monkeypatch.setitem(sys.modules, "ray", ray)
    spec = importlib.util.spec_from_file_location("prepare_with_ray", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(job: ModuleType, path: Path, **columns) -> dict[str, list]:
    pl.DataFrame({**GOOD, **columns}).write_parquet(path)
    rows = {"path": [str(path)], "file": [0], "columns": [json.dumps({name: name for name in GOOD})]}
    (block,) = job.read(rows)
    return {name: values.tolist() for name, values in block.items() if name in GOOD}


def test_values_are_those_of_the_file(job, tmp_path):
    assert read(job, tmp_path / "a.parquet") == GOOD
    coded = read(job, tmp_path / "b.parquet", user=pl.Series(["u", "v"], dtype=pl.Categorical), timestamp=[1.0, 2.0])
    assert coded == GOOD
    ratings = read(job, tmp_path / "c.parquet", rating=pl.Series([4.1, 5.0], dtype=pl.Float32))["rating"]
    assert ratings == [4.1, 5.0]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", [1.0, 2.5], ":2: column 'timestamp' has no value"),
        ("timestamp", ["1", "soon"], ":2: column 'timestamp' has no value"),
        ("rating", [4.0, float("nan")], ":2: column 'rating' has no value"),
        ("user", [1.0, 2.0], r": column 'user' \(user\) has the type Float64"),
        ("item", [True, False], r": column 'item' \(item\) has the type Boolean"),
        ("item", ["a", " "], ":2: column 'item' has no value"),
    ],
)
def test_values_that_plr_prepare_refuses_stop_it(job, tmp_path, column, values, message):
    with pytest.raises(DataError, match=message):
        read(job, tmp_path / "a.parquet", **{column: values})


def test_a_column_that_is_not_there_is_named(job, tmp_path):
    pl.DataFrame(GOOD).write_parquet(tmp_path / "a.parquet")
    rows = {"path": [str(tmp_path / "a.parquet")], "file": [0], "columns": [json.dumps({"user": "who"})]}
    with pytest.raises(DataError, match="no column 'who'; the file has the columns user, item, rating, timestamp"):
        list(job.read(rows))


def test_ratings_that_nobody_asks_for_are_not_read(job, monkeypatch, tmp_path):
    job.sha256.remote = lambda path: path
    columns = {name: name for name in GOOD}
    without = job.RaySources([tmp_path], columns, PrepareOptions())
    asked = job.RaySources([tmp_path], columns, PrepareOptions(min_rating=3))
    assert "rating" not in without._columns
    assert asked._columns == columns
