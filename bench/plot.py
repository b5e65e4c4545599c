"""Draws what each benchmark timed as bars, relative to ours."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from bench.records import OURS, Case
from plr.files import atomic_path


def bars(case: Case) -> dict[str, tuple[float, float, float]]:
    """Time relative to ours by name, as median and quartiles: the limit where there is one, ours, the peers."""
    phase = case.passes[-1]
    limit = case.ratio_to_limit(phase)
    drawn = {"limit": (1 / limit.high, 1 / limit.median, 1 / limit.low)} if limit else {}
    drawn[OURS] = (1.0, 1.0, 1.0)
    for peer in case.peers:
        ratio = case.ratio(peer, phase)
        drawn[peer] = (ratio.low, ratio.median, ratio.high)
    return drawn


def draw(cases: list[Case], path: Path) -> None:
    """Write a PNG: a panel per case, a bar per name, one logarithmic axis for all."""
    heights = [len(bars(case)) + 1 for case in cases]
    figure = Figure(figsize=(9, 0.28 * sum(heights) + 1), layout="constrained")
    panels = figure.subplots(len(cases), 1, sharex=True, squeeze=False, height_ratios=heights)
    for case, panel in zip(cases, panels[:, 0], strict=True):
        drawn = bars(case)
        lows, medians, highs = zip(*drawn.values(), strict=True)
        errors = [
            [median - low for median, low in zip(medians, lows, strict=True)],
            [high - median for median, high in zip(medians, highs, strict=True)],
        ]
        colors = ["tab:gray" if name == "limit" else "tab:orange" if name == OURS else "tab:blue" for name in drawn]
        panel.barh(list(drawn), medians, xerr=errors, color=colors, height=0.75)
        panel.bar_label(panel.containers[-1], fmt="%.3g", padding=4, fontsize=8)
        panel.set_title(f"{case.operator}, {case.shape}, {case.passes[-1]}", fontsize=9, loc="left")
        panel.tick_params(axis="y", labelsize=8)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.axvline(1.0, color="black", linewidth=0.8)
        panel.margins(x=0.15)
    panels[-1, 0].set_xlabel("time relative to ours; lower is faster")
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=120)
