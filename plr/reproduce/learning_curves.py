"""Validation by epoch: who is still rising when the budget ends."""

from __future__ import annotations

import polars as pl

from plr.reproduce.plots import canvas, integers, legend_below, panels, style_of, svg_of
from plr.reproduce.results import Cell, Plot, Table
from plr.reproduce.study import BASES, Run, Study
from plr.runs import RunFolder

__all__ = ["learning_curve", "learning_curves"]

METRIC = "ndcg@10"


def learning_curve(run: RunFolder, column: str = METRIC) -> dict[int, float]:
    """Return a column of a run's log, validation NDCG@10, by epoch, from 1; {} where the log has no such column.

    Of an epoch that was run again, the later figure counts. A run that was killed while it logged leaves a line without
    its end: it resumed in a log of its own.
    """
    logged = sorted(run.logs.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    curve: dict[int, float] = {}
    for path in logged:
        whole = path.read_bytes().rpartition(b"\n")[0]
        log = pl.read_csv(whole) if whole else pl.DataFrame()
        if column in log.columns:
            for epoch, value in log.select("epoch", column).drop_nulls().iter_rows():
                curve[epoch + 1] = value
    return curve


def learning_curves(study: Study, runs: list[Run]) -> Plot:
    """Return the curves of finished runs: a panel per backbone, a line per run."""
    curves = {run: learning_curve(study.folder(run)) for run in runs}
    backbones = list(dict.fromkeys(run.system.backbone for run in runs))
    with canvas():
        figure, axes = panels(1, len(backbones), width=3.2 if len(backbones) > 1 else 4.8, sharey=True)
        for place, backbone in enumerate(backbones):
            panel, named = axes[0][place], set()
            for run, curve in curves.items():
                if run.system.backbone == backbone:
                    label = None if run.system.method in named else run.system.label
                    named.add(run.system.method)
                    panel.plot(
                        list(curve),
                        list(curve.values()),
                        label=label,
                        linewidth=1,
                        markersize=3,
                        **style_of(run.system.method),
                    )
            panel.set(title=BASES[backbone], xlabel="epoch")
            integers(panel)
        axes[0][0].set_ylabel("validation NDCG@10")
        legend_below(figure, axes[0])
        svg = svg_of(figure)
    rows: list[list[Cell]] = [
        [run.name, epoch, value] for run, curve in curves.items() for epoch, value in curve.items()
    ]
    data = Table("learning-curves", "Validation NDCG@10 by epoch", ["run", "epoch", "ndcg@10"], rows)
    return Plot("learning-curves", "Validation NDCG@10 by epoch, a line per run", svg, data)
