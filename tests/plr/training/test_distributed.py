"""Two processes on CPUs, as `plr train --devices 2` starts them."""

import json
import subprocess
import sys

import polars as pl
import pytest


@pytest.mark.parametrize("method", ["plr", "lares", "plr --training_rows sequence --targets_per_row 2"])
def test_two_processes_train_one_run(method, small_data, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "plr", "train", "--data", str(small_data), "--out", str(out), "--devices", "2",
        "--method", *method.split(), "--accelerator", "cpu", "--dim", "16", "--ffn_dim", "16", "--batch_size", "16",
        "--epochs", "3", "--refit", "true", "--lr", "0.01", "--progress", "false", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "metrics.json").read_text())
    assert result["test"]["rows"] == 60
    # The metrics of an epoch are over the rows of both processes, hence those of the saved weights over all rows.
    logged = pl.read_csv(next(out.glob("logs/csv/*/metrics.csv")))
    assert abs(logged["ndcg@10"].max() - result["valid"]["ndcg@10"]) < 1e-9
