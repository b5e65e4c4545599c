"""A data set's report as tables and lines for the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from plr.data.split import SPLITS

__all__ = ["print_line", "rows_table", "sizes_table", "skipped_lines", "sparsity"]

_SIZES = ("users", "items", "interactions")
_REASONS = {
    "low_rated": "target rated too low",
    "short_history": "history too short",
    "empty_history": "nothing of the history known",
    "untitled": "item without title",
    "unseen_target": "target unseen in training",
    "unseen_history": "history unseen in training",
}


def print_line(console: Console, text: str) -> None:
    """Print the text as it is: a path may look like rich's markup, and must not be broken where the screen ends."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def sparsity(size: dict[str, int]) -> float:
    """Return 1 - interactions / (users × items)."""
    return 1 - size["interactions"] / (size["users"] * size["items"])


def sizes_table(report: dict[str, Any], reference: dict[str, int] | None = None, source: str = "") -> Table:
    """Return users, items and interactions as read, as each filter dropped, and as they are left.

    Args:
        report: Of the data set.
        reference: Published figures to stand below.
        source: Where those are from.
    """
    table = Table(title="Interactions", title_justify="left")
    table.add_column("")
    for name in (*_SIZES, "sparsity"):
        table.add_column(name, justify="right")

    def add(label: str, size: dict[str, int], sign: str = "") -> None:
        last = f"{sparsity(size):.2%}" if not sign and size["users"] and size["items"] else ""
        table.add_row(label, *(f"{sign if size[key] else ''}{size[key]:,}" for key in _SIZES), last)

    add("read", report["read"])
    for step in report["filters"]:
        add(f"{step['filter']} {step['value']}", step["dropped"], "-")
    add("after the filters", report["filtered"])
    if any(report[key] != report["filtered"][key] for key in _SIZES):
        add("in the sequences", report)
    if reference is not None:
        add(source, reference)
    return table


def rows_table(report: dict[str, Any]) -> Table:
    """Return the rows of each split and what was dropped of them, by reason."""
    table = Table(title=f"Rows, {report['split']} split", title_justify="left")
    dropped = report["dropped_rows"]
    reasons = [name for name in _REASONS if any(part.get(name) for part in dropped.values())]
    timed = "times" in report
    spans = ("from", "to") if timed else ()
    for name in ("", "rows", *(f"dropped: {_REASONS[name]}" for name in reasons), *spans):
        table.add_column(name, justify="left" if not name else "right")
    for part in SPLITS:
        counts = [f"{dropped.get(part, {}).get(name, 0):,}" for name in reasons]
        times = [str(time) for time in report["times"].get(part, ("", ""))] if timed else []
        table.add_row(part, f"{report['rows'][part]:,}", *counts, *times)
    return table


def skipped_lines(report: dict[str, Any], shown: int = 10) -> list[str]:
    """Return what to say about the lines that were left out."""
    skipped = report.get("skipped_lines")
    if skipped is None:
        return []
    lines = [f"{skipped['count']:,} lines were left out"]
    lines += [f"  {entry['file']}:{entry['line']}: {entry['reason']}" for entry in skipped["first"][:shown]]
    if skipped["count"] > shown:
        lines.append("  … more are listed in manifest.json")
    return lines
