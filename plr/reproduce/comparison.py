"""Systems side by side: means over seeds, and differences between them that are corrected as one family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from plr.data import SequenceDataset
from plr.errors import DataError
from plr.evaluation import Comparison, holm
from plr.reproduce.results import Cell, Estimate
from plr.reproduce.study import Run, Study, System
from plr.serving.compare import compare_runs

__all__ = [
    "COLUMNS", "METRICS", "Pair", "against", "check_comparable", "compared", "difference_cells", "listed_runs",
    "metric_cells", "spread",
]  # fmt: skip

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
COLUMNS = ["NDCG@10 − reference", "95 % interval", "effect size", "p (Holm)"]

Pair = tuple[System, System]


def check_comparable(data: str, dataset: SequenceDataset) -> None:
    """Refuse data on which systems cannot be compared, before any of them is trained.

    Raises:
        DataError: they have fewer than two items, or test rows of fewer than two users.
    """
    users = len(torch.searchsorted(dataset.offsets, dataset.target_positions("test"), right=True).unique())
    for found, what in ((users, "users with a test row"), (dataset.num_items, "items")):
        if found < 2:
            raise DataError(f"{data}: has {found} {what}; to compare systems takes two at least")


def metric_cells(study: Study, runs: Sequence[Run], metrics: Sequence[str] = METRICS) -> list[Cell]:
    """Return the mean and spread of each test metric over the runs."""
    return [Estimate.of([study.test_metric(run, name) for run in runs]) for name in metrics]


def against(study: Study, pairs: Sequence[Pair]) -> dict[Pair, tuple[Comparison, float]]:
    """Compare each first system with the second on the seeds that both have.

    Returns:
        By pair its comparison of NDCG@10 by user, and its p-value corrected by Holm over all pairs; without the pairs
        of which a system has no finished run.
    """
    found: dict[Pair, Comparison] = {}
    for pair in dict.fromkeys(pairs):
        of, reference = ({run.seed: run for run in study.done(system)} for system in pair)
        seeds = sorted(set(of) & set(reference))
        if seeds and pair[0] != pair[1]:
            folders = [study.folder(runs[seed]).path for runs in (reference, of) for seed in seeds]
            _, compared = compare_runs(folders)
            assert compared.comparison is not None  # with the first system
            found[pair] = compared.comparison
    corrected = holm([comparison.p_value for comparison in found.values()]).tolist() if found else []
    return {pair: (comparison, float(p)) for (pair, comparison), p in zip(found.items(), corrected, strict=True)}


def difference_cells(found: tuple[Comparison, float] | None) -> list[Cell]:
    """Return a comparison as the cells of COLUMNS."""
    if found is None:
        return [None] * len(COLUMNS)
    comparison, p = found
    interval = f"{comparison.low:+.4f} to {comparison.high:+.4f}"  # as the metrics are shown
    return [f"{comparison.difference:+.4f}", interval, f"{comparison.effect_size:+.3f}", f"{p:.2g}"]


def compared(found: Mapping[Pair, tuple[Comparison, float]]) -> str:
    """Return how many comparisons a table has, and of how many users, for its note."""
    users = {comparison.n for comparison, _ in found.values()}  # all are of one split's rows
    return ", ".join([str(len(found)), *(f"over the {each:,} users with a test row" for each in users)])


def spread(study: Study) -> str:
    """Return what the error bars of a plot are."""
    seeds = len(study.seeds)
    return f"error bars: standard deviation over {seeds} seeds" if seeds > 1 else "one seed, hence no error bars"


def listed_runs(runs: Sequence[Run]) -> str:
    """Return the names of the runs of one system, as `sasrec-base-seed{0,1}`."""
    if not runs:
        return ""
    seeds = ",".join(str(run.seed) for run in runs)
    return f"{runs[0].system.name}-seed{seeds if len(runs) == 1 else '{' + seeds + '}'}"
