"""What `bench.tuning` has in common with `plr reproduce table2 --preset small`: methods, settings, comparisons.

`plr reproduce` trains every backbone with every method; the records systems-NAME in bench/results are of the command
that did so before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plr.evaluation import Comparison, compare, holm, load_ranking
from plr.reproduce.presets import METHODS, PRESETS
from plr.reproduce.request import settings_of
from plr.runs import RunFolder

__all__ = ["COMMON", "METHODS", "Cell", "against", "described", "settings"]

# The settings of all cells. Dropout as in ReaRec's public code; M = T = 2 and lambda = 0.1 are the paper's.
COMMON: dict[str, Any] = {name: value for name, value in PRESETS["small"].common.items() if name != "epochs"}

Cell = tuple[str, str]  # backbone, method


def settings(assignments: Iterable[str], cell: Cell) -> dict[str, Any]:
    """Return the fields that `[SYSTEM:]FIELD=VALUE` assignments set for one cell; values are YAML."""
    return settings_of(assignments, cell, known=None)


def against(reference: str, cells: dict[Cell, dict[int, RunFolder]]) -> dict[Cell, tuple[Comparison, float]]:
    """Compare each method with `reference` on its backbone and the seeds that both have; p Holm-corrected over all."""
    found = {}
    for cell, folders in cells.items():
        other = cells.get((cell[0], reference), {})
        seeds = sorted(set(folders) & set(other))
        if cell[1] != reference and seeds:
            pair = [[load_ranking(runs[seed].ranks("test")) for seed in seeds] for runs in (folders, other)]
            found[cell] = compare(*pair)
    corrected = holm([comparison.p_value for comparison in found.values()]) if found else []
    return {cell: (comparison, float(p)) for (cell, comparison), p in zip(found.items(), corrected, strict=True)}


def described(comparison: tuple[Comparison, float] | None) -> str:
    """Return a comparison as a cell of the table."""
    if comparison is None:
        return ""
    found, p = comparison
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p = {p:.2g}"


