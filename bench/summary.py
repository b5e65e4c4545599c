"""What the tables of systems share: the metrics they show, and several runs of a system as one row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation" of the runs' values; of one run, its value."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def scores_of_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a cell for each of METRICS: its mean and spread over the test metrics of several runs."""
    return [mean_and_spread([run["test"][name] for run in runs]) for name in METRICS]


def scores(metrics: Mapping[str, float]) -> list[str]:
    """Return a cell for each of METRICS where nothing is random."""
    return [f"{metrics[name]:.4f}" for name in METRICS]
