"""Table 2: every backbone with every method."""

from __future__ import annotations

import torch

from plr.evaluation import evaluation_batches, metrics, popularity_ranks
from plr.evaluation.ranking import seen_items
from plr.reproduce import paper
from plr.reproduce.comparison import (
    COLUMNS,
    METRICS,
    Pair,
    against,
    compared,
    difference_cells,
    listed_runs,
    metric_cells,
)
from plr.reproduce.learning_curves import learning_curves
from plr.reproduce.presets import REINFORCED
from plr.reproduce.results import Cell, Part, Section, Table
from plr.reproduce.study import BASES, LABELS, Run, Study, System
from plr.serving.compare import BY_USER

OURS = ("plr", "plr-states")


def needs(study: Study) -> list[Run]:
    """Return the runs of every cell."""
    return study.runs(study.table_2())


def section(study: Study) -> Section:
    """Return the comparison, the best rivals, the paper's figures and the learning curves."""
    cells = [system for system in study.table_2() if study.done(system)]
    rivals = _best_rivals(study, cells)
    to_base: list[Pair] = [(each, System(each.backbone, "base")) for each in cells if each.method != "base"]
    found = against(study, [*to_base, *rivals])
    parts: list[Part] = [_comparison(study, cells, found)]
    if rivals:
        parts.append(_improvements(study, rivals, found))
    if cells:
        parts.append(learning_curves(study, [run for system in cells for run in study.done(system)]))
    parts += [_printed(), _agreement(study, cells)]
    return Section("table2", "Table 2: every backbone with every method", parts)


def _comparison(study: Study, cells: list[System], found: dict) -> Table:
    popularity = _popularity(study)
    rows: list[list[Cell]] = [["", "popularity", *(popularity[name] for name in METRICS), *[None] * (len(COLUMNS) + 2)]]
    for system in cells:
        runs = study.done(system)
        difference = difference_cells(found.get((system, System(system.backbone, "base"))))
        best = ", ".join(str(study.folder(run).read_metrics()["best_epoch"]) for run in runs)
        rows.append(
            [BASES[system.backbone], system.label, *metric_cells(study, runs), *difference, best, listed_runs(runs)]
        )
    return Table(
        "table2",
        "Test metrics, mean ± standard deviation over seeds",
        ["backbone", "method", *METRICS, *COLUMNS, "best epochs", "runs"],
        rows,
        f"Reference: the bare backbone. Differences are averaged over the seeds that both have; {BY_USER}; "
        "bootstrap interval over users and runs; effect size: the mean difference in standard deviations of the "
        "users' differences; p of the paired t-test over users, corrected by Holm over all comparisons "
        f"of this table and the next: {compared(found)}. {_phases(cells)}",
    )


def _popularity(study: Study) -> dict[str, float]:
    """Return the metrics of ranking by what the runs are trained on, among the items that they rank."""
    config = study.config_of(System("sasrec", "base"))
    counts, ranks = study.dataset.training_popularity(config.refit), []
    for batch in evaluation_batches(study.dataset.rows("test", config.max_length), config.eval_batch_size, "cpu"):
        seen = seen_items(batch.item_ids, batch.lengths) if config.exclude_seen else None
        ranks.append(popularity_ranks(counts, batch.targets, exclude=seen))
    return metrics(torch.cat(ranks))


def _phases(cells: list[System]) -> str:
    if any(system.method == REINFORCED for system in cells):
        return (
            f"{LABELS['lares']} is its first phase; {LABELS[REINFORCED]}: the second phase, each run from that of the "
            "first with the same seed, with as many epochs again."
        )
    return "LARES is its first phase, without reinforcement."


def _best_rivals(study: Study, cells: list[System]) -> list[Pair]:
    """Return each of our systems with the best other on its backbone, by mean test NDCG@10, as the paper has it."""
    pairs = []
    for ours in (each for each in cells if each.method in OURS):
        rivals = [each for each in cells if each.backbone == ours.backbone and each.method not in OURS]
        if rivals:
            pairs.append((ours, max(rivals, key=lambda each: _mean(study, each, "ndcg@10"))))
    return pairs


def _mean(study: Study, system: System, metric: str) -> float:
    values = [study.test_metric(run, metric) for run in study.done(system)]
    return sum(values) / len(values)


def _improvements(study: Study, rivals: list[Pair], found: dict) -> Table:
    rows: list[list[Cell]] = []
    for ours, rival in rivals:
        changes = [_relative(_mean(study, ours, name), _mean(study, rival, name)) for name in METRICS]
        difference = difference_cells(found.get((ours, rival)))
        runs = "; ".join(listed_runs(study.done(each)) for each in (ours, rival))
        rows.append([BASES[ours.backbone], ours.label, rival.label, *changes, *difference, runs])
    return Table(
        "table2-improvement",
        "PLR against the best of the others on each backbone",
        ["backbone", "method", "best rival", *(f"{name}, change" for name in METRICS), *COLUMNS, "runs"],
        rows,
        "Reference: the best rival, chosen by its mean test NDCG@10, which favours the rival.",
    )


def _relative(value: float, reference: float) -> str:
    return f"{value / reference - 1:+.2%}" if reference else ""


def _printed() -> Table:
    rows: list[list[Cell]] = [
        [BASES[backbone], BASES[backbone] if method == "base" else LABELS[method], domain, *values[place]]
        for backbone, methods in paper.TABLE_2.items()
        for method, values in methods.items()
        for place, domain in enumerate(paper.DOMAINS)
    ]
    return Table(
        "table2-paper",
        "As the paper prints it, on its own data",
        ["backbone", "method", "data", *METRICS],
        rows,
        folded=True,
    )


def _agreement(study: Study, cells: list[System]) -> str:
    """Say in how many pairs of methods the order by NDCG@10 is the paper's on most of its data sets."""
    same = different = 0
    for one in cells:
        for other in cells:
            printed = paper.TABLE_2[one.backbone]
            known = one.method in printed and other.method in printed
            if one.backbone != other.backbone or one.method >= other.method or not known:
                continue
            ahead = sum(a[2] > b[2] for a, b in zip(printed[one.method], printed[other.method], strict=True))
            measured = _mean(study, one, "ndcg@10") > _mean(study, other, "ndcg@10")
            same += measured == (ahead >= 2)
            different += measured != (ahead >= 2)
    if not same + different:
        return "Too few systems to compare their order with the paper's."
    return (
        f"Of {same + different} pairs of methods on one backbone, {same} stand here in the order by NDCG@10 that they "
        f"have on most of the paper's data sets, {different} in the other; differences within a standard deviation "
        "count too."
    )
