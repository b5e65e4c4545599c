"""Runs on sequence rows: they learn, and an interrupted one ends as an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from plr.config import Config
from plr.data import DealtRows, prepare
from plr.training import train
from plr.training.module import training_rows
from tests.plr.training.test_resume import assert_equal_runs, killed_in_mid_epoch


@pytest.mark.parametrize(
    "options",
    [
        {"method": "plr", "streams": 2},
        {"method": "plr", "mixture": "states", "targets_per_row": 2},
        {"method": "erl", "targets_per_row": 1},
        {"method": "prl", "warmup_epochs": 1},
        {"method": "base", "targets_per_row": 3, "min_context": 2},
        {"method": "base", "accumulate_batches": 3, "schedule": "cosine", "warmup_steps": 3, "optimizer": "adamw",
         "weight_decay": 0.01, "lr": 0.03, "batch_size": 8},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_run_learns_and_resumes_exactly(options, quick, tmp_path, monkeypatch):
    values = {**quick, **options, "training_rows": "sequence", "max_length": 5, "batch_size": 16, "epochs": 5}
    uninterrupted = tmp_path / "uninterrupted"
    result = train(Config(**{**values, "out": str(uninterrupted)}))
    assert result["valid"]["ndcg@10"] > 0.5  # 24 items at random: .19
    config = Config(**{**values, "out": str(tmp_path / "killed")})
    killed_in_mid_epoch(config, monkeypatch, epoch=2, batch=1)
    train(config)
    assert_equal_runs(uninterrupted, tmp_path / "killed")


@pytest.mark.parametrize("unit", ["rows", "targets"])
def test_batches_hold_so_many_of_their_unit(unit, quick):
    dataset = prepare(quick["data"])
    values = {"method": "plr", "training_rows": "sequence", "max_length": 5, "batch_size": 8, "batch_unit": unit}
    config = Config(**{**quick, **values, "epochs": 1})
    train(config)
    rows = training_rows(dataset, config)
    count = len(rows) if unit == "rows" else int(rows.target_counts().sum())
    (log,) = Path(config.out).glob("logs/csv/*/metrics.csv")
    assert pl.read_csv(log)["step"].max() + 1 == -(-count // 8)


def test_the_configured_rows(quick):
    dataset = prepare(quick["data"])

    def rows(**options):
        return training_rows(dataset, Config(**{**quick, "method": "plr", "max_length": 4, **options}))

    targets = int((dataset.roles == 1).sum())
    assert len(rows()) == targets
    whole = rows(training_rows="sequence")
    assert int(whole.target_counts().sum()) == targets
    assert whole.contexts.max() == 2  # three quarters of 4, less one
    assert rows(training_rows="sequence", min_context=1).contexts is None
    dealt = rows(training_rows="sequence", targets_per_row=1)
    assert isinstance(dealt, DealtRows)
    assert len(dealt) == targets
    assert torch.equal(dealt.lengths.sort().values.unique(), whole.lengths.sort().values.unique())
