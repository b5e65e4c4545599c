"""What the tables of systems share: the metrics shown, several runs as one row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def header(*columns: str) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation" of the runs' values; of one run, its value."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def scores_of_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a cell for each of METRICS: its mean and spread over the test metrics of several runs."""
    return [mean_and_spread([run["test"][name] for run in runs]) for name in METRICS]
