"""What the tables of systems share: runs that are trained once, the metrics shown, several runs as one row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plr.config import Config
from plr.runs import RunFolder
from plr.training import train

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def trained(config: Config) -> RunFolder:
    """Return the folder of a finished run, training it first where it is not: an interrupted one is resumed."""
    folder = RunFolder(Path(config.out))
    if folder.finished():
        before, now = Config.load(folder.config).decisive(), config.decisive()
        changed = [f"{name}: {before[name]!r} -> {now[name]!r}" for name in now if before[name] != now[name]]
        if changed:
            raise SystemExit(f"{folder.path}: holds a run of another configuration ({'; '.join(changed)})")
    else:
        print(folder.path.name, flush=True)
        train(config)
    return folder


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
