"""Compared runs as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plr.formats import rendered
from plr.serving.compare import BY_USER, ComparedSystem, other_candidates

__all__ = ["ComparedRuns"]


@dataclass(frozen=True)
class ComparedRuns:
    """Systems that ranked the same rows, the first of them the one that the others are compared with.

    Attributes:
        systems: their runs, metrics and differences.
        metrics: those that are shown.
        metric: the one that they are compared by.
    """

    systems: list[ComparedSystem]
    metrics: Sequence[str]
    metric: str

    def rendered(self, chosen: str) -> str:
        """Return the table, with what its figures are, as text, markdown, latex or html."""
        rows = _rows(self.systems, self.metrics, self.metric)
        return rendered(rows, _explained(self.systems, self.metric), chosen)

    def __str__(self) -> str:
        return self.rendered("text")


def _rows(systems: Sequence[ComparedSystem], metrics: Sequence[str], metric: str) -> list[list[str]]:
    """Return a header and a row of cells per system: its metrics, then how it differs from the first in `metric`."""
    difference = f"{metric} - first"
    rows = [["system", "runs", *metrics, difference, "95 % interval", "effect size", "p (Holm)"]]
    for system in systems:
        cells = [system.name, str(len(system.folders)), *(_mean_and_spread(system, name) for name in metrics)]
        found = system.comparison
        if found is None or system.p_value is None:
            cells += [""] * 4
        else:
            interval = f"{found.low:+.4f} to {found.high:+.4f}"
            cells += [f"{found.difference:+.4f}", interval, f"{found.effect_size:+.3f}", f"{system.p_value:.2g}"]
        rows.append(cells)
    return rows


def _explained(systems: Sequence[ComparedSystem], metric: str) -> str:
    """Return what the table's figures are."""
    first, users = systems[0], next(system.comparison.n for system in systems if system.comparison)
    text = (
        f"Test rows of {users} users; mean ± standard deviation over runs. Differences in {metric} to {first.name}, "
        f"averaged over runs; {BY_USER}; bootstrap interval over users and runs; effect size: the mean difference in "
        "standard deviations of the users' differences; p of the paired t-test over users, corrected by Holm for "
        f"{len(systems) - 1} comparison{'s' if len(systems) > 2 else ''}."
    )
    return " ".join(filter(None, (text, other_candidates(systems))))


def _mean_and_spread(system: ComparedSystem, metric: str) -> str:
    spread = system.spread(metric)
    mean = f"{system.mean(metric):.4f}"
    return mean if spread is None else f"{mean} ± {spread:.4f}"
