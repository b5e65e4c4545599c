"""Figure 3: what is left of the quality when interactions of the test histories are missing."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from plr.config import Config
from plr.data import Rows, SequenceDataset
from plr.evaluation import evaluation_batches, metrics, rank_rows
from plr.reproduce.comparison import listed_runs, spread
from plr.reproduce.plots import canvas, legend_below, line, panels, svg_of
from plr.reproduce.results import Cell, Estimate, Plot, Section, Table
from plr.reproduce.study import BASES, Run, Study

RATES = (0.0, 0.1, 0.2, 0.3)
METRICS = {"ndcg@20": "NDCG@20", "recall@20": "Recall@20"}
SEED = 0


def needs(study: Study) -> list[Run]:
    """Return the runs of Table 2."""
    return study.runs(study.table_2())


def thinned_rows(dataset: SequenceDataset, rate: float, max_length: int, seed: int = SEED) -> Rows:
    """Return the test rows with a share of each history's interactions removed at random, never all of them.

    Of n interactions before the target round(rate·n) go, n - 1 at most, wherever they stand; the model then sees the
    last `max_length` of those that stay. What goes at a lower rate also goes at a higher one.

    Args:
        dataset: whose test rows.
        rate: in [0, 1).
        max_length: of the model.
        seed: of the choice; the same rows for all systems.
    """
    offsets, items = dataset.offsets.numpy(), dataset.items.numpy()
    targets = dataset.target_positions("test").numpy()
    starts = offsets[np.searchsorted(offsets, targets, side="right") - 1]
    random = np.random.Generator(np.random.PCG64(seed))
    parts, lengths = [], []
    for start, target in zip(starts.tolist(), targets.tolist(), strict=True):
        size = target - start
        order = random.permutation(size)
        removed = min(round(rate * size), size - 1)
        parts.append(items[start + np.sort(order[removed:])])
        parts.append(items[target : target + 1])
        lengths.append(size - removed)
    kept = torch.tensor(lengths)
    ends = (kept + 1).cumsum(0)
    return Rows(
        torch.from_numpy(np.concatenate(parts)),
        stops=ends - 1,
        lengths=kept.clamp(max=max_length),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        every_position=False,
    )


def _robustness(study: Study, run: Run) -> dict[str, dict[str, float]]:
    """Return the metrics at each rate."""
    config, model = Config.load(study.folder(run).config), study.model(run)
    found = {}
    for rate in RATES:
        rows = thinned_rows(study.dataset, rate, config.max_length)
        batches = evaluation_batches(rows, config.eval_batch_size, "cpu")
        found[str(rate)] = metrics(rank_rows(model, batches, exclude_seen=config.exclude_seen).ranks, (20,))
    return found


def section(study: Study) -> Section:
    """Return a panel per metric and backbone."""
    systems = [system for system in study.table_2() if study.done(system)]
    backbones = list(dict.fromkeys(system.backbone for system in systems))
    rows: list[list[Cell]] = []
    with canvas():
        figure, axes = panels(
            len(METRICS), max(len(backbones), 1), width=3.2 if len(backbones) > 1 else 4.8, sharey="row", sharex=True
        )
        for system in systems:
            runs = study.done(system)
            found = [study.measured("robustness", run, partial(_robustness, study, run), seed=SEED) for run in runs]
            by_rate = {
                rate: [Estimate.of([each[str(rate)][name] for each in found]) for name in METRICS] for rate in RATES
            }
            for number, row in enumerate(axes):
                panel, shown = row[backbones.index(system.backbone)], [each[number] for each in by_rate.values()]
                line(
                    panel,
                    [100 * rate for rate in RATES],
                    [each.mean for each in shown],
                    [each.sd for each in shown],
                    system.label,
                    system.method,
                )
            first = by_rate[0.0][0].mean
            for rate, estimates in by_rate.items():
                loss = f"{estimates[0].mean / first - 1:+.1%}" if first else ""
                rows.append([BASES[system.backbone], system.label, f"{rate:.0%}", *estimates, loss, listed_runs(runs)])
        for place, backbone in enumerate(backbones):
            axes[0][place].set_title(BASES[backbone])
            axes[-1][place].set(xlabel="interactions removed, %", xticks=[100 * rate for rate in RATES])
        for row, name in zip(axes, METRICS.values(), strict=True):
            row[0].set_ylabel(f"{name}, test")
        legend_below(figure, axes[0])
        svg = svg_of(figure)
    header = ["backbone", "method", "removed", *METRICS, "NDCG@20, change", "runs"]
    data = Table("figure3", "Test metrics with interactions removed", header, rows)
    caption = f"Test metrics with a share of each test history removed at random; {spread(study)}"
    note = (
        "The same interactions are missing for all systems; those of a lower rate are among those of a higher one. Of "
        "n interactions round(rate·n) go and one at least stays. Training is as in Table 2."
    )
    return Section(
        "figure3", "Figure 3: robustness to missing interactions", [Plot("figure3", caption, svg, data), note]
    )
