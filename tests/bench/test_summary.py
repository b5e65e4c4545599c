from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.summary import METRICS, mean_and_spread, scores_of_runs, trained
from plr.config import Config
from plr.runs import RunFolder

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_mean_and_standard_deviation_over_runs_and_one_run_as_it_is():
    # Deviations of 1, 2, 6 from 3: 2, 1, 3; variance (4 + 1 + 9) / (3 − 1) = 7.
    assert mean_and_spread([1.0, 2.0, 6.0]) == "3.0000 ± 2.6458"
    assert mean_and_spread([0.25]) == "0.2500"


def test_cells_are_those_of_the_test_metrics_in_the_order_of_the_columns():
    runs = [{"test": {name: number + shift for number, name in enumerate(METRICS)}} for shift in (0.0, 0.2)]
    assert scores_of_runs(runs)[:2] == ["0.1000 ± 0.1414", "1.1000 ± 0.1414"]


def committed(name):
    return json.loads((RESULTS / f"{name}.json").read_text()), (RESULTS / f"{name}.md").read_text().splitlines()


def test_the_committed_tables_have_the_cells_of_their_records():
    beauty, beauty_lines = committed("beauty")
    systems, systems_lines = committed("systems-beauty")
    for name, runs in beauty["runs"].items():
        assert f"| {name} | {' | '.join(scores_of_runs(runs))} |" in beauty_lines
    for cell, runs in systems["cells"].items():
        begin = f"| {cell.replace('+', ' | ')} | {' | '.join(scores_of_runs(runs))} | {len(runs)} |"
        assert any(line.startswith(begin) for line in systems_lines), begin


def test_a_finished_run_of_other_settings_is_not_taken_for_one(tmp_path):
    folder = RunFolder(tmp_path)
    config = Config(data="d", out=str(tmp_path), method="base", lr=0.001)
    config.save(folder.config)
    folder.metrics.write_text("{}")
    assert trained(config) == folder
    with pytest.raises(SystemExit, match=r"another configuration \(lr: 0\.001 -> 0\.002\)"):
        trained(Config(data="d", out=str(tmp_path), method="base", lr=0.002))
