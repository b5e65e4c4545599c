from __future__ import annotations

import json
from pathlib import Path

from bench.summary import METRICS, mean_and_spread, scores_of_runs

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


def test_the_committed_search_has_what_its_record_has():
    record, lines = committed("tuning-beauty")
    for name, found in record["methods"].items():
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        best = max(trial["ndcg@10"] for trial in found["trials"])
        assert f"| {found['trials'][0]['ndcg@10']:.4f}, {best:.4f} |" in row
        assert " | ".join(scores_of_runs(found["final"])) in row
