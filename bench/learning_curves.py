"""Validation NDCG@10 by epoch, a panel per backbone, a line per method: who is still rising when the budget ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plr.files import atomic_path
from plr.runs import RunFolder

METRIC = "ndcg@10"


def learning_curve(run: RunFolder) -> dict[int, float]:
    """Return a run's validation METRIC by epoch, from 1. Of an epoch that was run again, the later figure counts."""
    logged = sorted(run.logs.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    curve: dict[int, float] = {}
    for path in logged:
        for epoch, value in pl.read_csv(path).select("epoch", METRIC).drop_nulls().iter_rows():
            curve[epoch + 1] = value
    return curve


def draw(curves: Mapping[tuple[str, str], Iterable[Mapping[int, float]]], path: Path) -> None:
    """Write a PNG.

    Args:
        curves: by backbone and method, each seed's `learning_curve`.
        path: of the PNG.
    """
    backbones = list(dict.fromkeys(backbone for backbone, _ in curves))
    methods = list(dict.fromkeys(method for _, method in curves))
    figure = Figure(figsize=(4.2 * len(backbones) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(backbones), sharex=True, sharey=True, squeeze=False)[0]
    for backbone, panel in zip(backbones, panels, strict=True):
        for place, method in enumerate(methods):
            for number, curve in enumerate(curves.get((backbone, method), ())):
                label = method if number == 0 else None
                panel.plot(list(curve), list(curve.values()), color=f"C{place}", marker=".", label=label)
        panel.set_title(backbone)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("validation NDCG@10")
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
