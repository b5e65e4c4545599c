"""Figure 2: how much depends on streams, steps, the weight of the divergence and dropout."""

from __future__ import annotations

from typing import Any

from plr.reproduce.comparison import listed_runs, spread
from plr.reproduce.plots import canvas, integers, legend_below, line, panels, svg_of
from plr.reproduce.results import Cell, Estimate, Plot, Section, Table
from plr.reproduce.study import Run, Study, System

BACKBONE = "sasrec"
METHODS = ("plr-states", "plr")
METRICS = {"ndcg@20": "NDCG@20", "recall@20": "Recall@20"}
AXES = {
    "streams": "(a) streams M",
    "steps": "(b) steps T",
    "kl_weight": "(c) divergence weight λ",
    "dropout": "(d) dropout p",
}


def points(study: Study) -> dict[tuple[str, str], dict[float, System]]:
    """Return the systems of each curve, by axis and method, and by their value on the axis."""
    grids: dict[str, tuple] = {
        "streams": study.preset.streams,
        "steps": study.preset.steps,
        "kl_weight": study.preset.kl_weights,
        "dropout": study.preset.dropouts,
    }
    found = {}
    for axis, grid in grids.items():
        for method in METHODS:
            if axis == "kl_weight" and method == "plr":
                continue  # a mixture of distributions has no divergence term
            own = study.config_of(System(BACKBONE, method))
            values = sorted({*grid, own.hidden_dropout if axis == "dropout" else getattr(own, axis)})
            found[axis, method] = {value: study.system(BACKBONE, method, **_changes(axis, value)) for value in values}
    return found


def _changes(axis: str, value: Any) -> dict[str, Any]:
    return {"hidden_dropout": value, "attention_dropout": value} if axis == "dropout" else {axis: value}


def needs(study: Study) -> list[Run]:
    """Return the runs of all points."""
    return study.runs(system for curve in points(study).values() for system in curve.values())


def section(study: Study) -> Section:
    """Return the four panels for both metrics."""
    rows: list[list[Cell]] = []
    with canvas():
        figure, axes = panels(len(METRICS), len(AXES), sharey="row", width=2.9)
        for (axis, method), curve in points(study).items():
            runs = {value: study.done(system) for value, system in curve.items()}
            runs = {value: found for value, found in runs.items() if found}
            places = list(range(len(runs))) if axis == "kl_weight" else list(runs)
            estimates = {
                value: [Estimate.of([study.test_metric(run, metric) for run in found]) for metric in METRICS]
                for value, found in runs.items()
            }
            label = System(BACKBONE, method).label
            for number, panel in enumerate(row[list(AXES).index(axis)] for row in axes):
                shown = [each[number] for each in estimates.values()]
                line(panel, places, [each.mean for each in shown], [each.sd for each in shown], label, method)
                panel.set_xlabel(AXES[axis])
                if axis == "kl_weight":
                    panel.set_xticks(places, [f"{value:g}" for value in runs])
                elif axis != "dropout":
                    integers(panel)
            rows += [
                [axis, label, value, *estimates[value], listed_runs(found)] for value, found in runs.items()
            ]
        for row, name in zip(axes, METRICS.values(), strict=True):
            row[0].set_ylabel(f"{name}, test")
        legend_below(figure, axes[0])
        svg = svg_of(figure)
    data = Table("figure2", "Test metrics by setting", ["axis", "method", "value", *METRICS, "runs"], rows)
    caption = f"Test NDCG@20 and Recall@20 on SASRec by streams, steps, divergence weight and dropout; {spread(study)}"
    note = (
        "Each panel changes one setting and keeps the others. p is the dropout of hidden states and of attention. λ "
        "is an axis of the printed form alone. The paper finds its best values at M = T = 2, λ = 0.1 and p from 0.2 "
        f"to 0.5; best here, by mean test NDCG@20: {_best(rows)}."
    )
    return Section("figure2", "Figure 2: sensitivity", [Plot("figure2", caption, svg, data), note])


def _best(rows: list[list[Cell]]) -> str:
    """Return the value of each curve with the highest mean, all of them where several have it."""
    curves: dict[tuple, dict[float, float]] = {}
    for axis, method, value, estimate, *_ in rows:
        curves.setdefault((method, axis), {})[value] = estimate.mean  # type: ignore[union-attr, index]
    best = {
        key: [value for value, mean in curve.items() if mean == max(curve.values())] for key, curve in curves.items()
    }
    return "; ".join(
        f"{method} {axis} {' and '.join(f'{value:g}' for value in values)}" for (method, axis), values in best.items()
    )
