"""What the terminal shows: a data set's report, metrics, recommendations and systems, as tables and lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plr.prepare.split import SPLITS
from plr.presets import preset_summaries
from plr.systems import BACKBONES, METHODS, REFUSALS

if TYPE_CHECKING:
    from plr.serving import Recommendation

__all__ = [
    "items_ranked",
    "metrics_table",
    "presets_table",
    "print_line",
    "quoted",
    "recommendation_table",
    "rows_table",
    "sizes_table",
    "skipped_lines",
    "sparsity",
    "systems_tables",
]

_SIZES = ("users", "items", "interactions")
_REASONS = {
    "before_train_time": "before train_time",
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


def quoted(path: object) -> str:
    """Return a path as it is typed in a shell, for commands to be copied."""
    return shlex.quote(str(path))


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


def items_ranked(exclude_seen: bool, items: int | None = None) -> str:
    """Return which of the items, of how many if that is given, a row's target was ranked among."""
    number = "" if items is None else f"{items} "
    return f"all {number}items but those of the history" if exclude_seen else f"all {number}items"


COLUMNS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def metrics_table(
    systems: Mapping[str, Mapping[str, float]],
    *,
    columns: Sequence[str] = COLUMNS,
    title: str | None = None,
) -> Table:
    """Return a rich table: a row per system in the given order, a column per metric, its best value in bold.

    Values are shown with four decimals, and those that look equal to the best are bold too; a system
    alone has none. A metric that a system lacks shows as "–".
    """
    table = Table(title=title)
    table.add_column("System")
    for column in columns:
        table.add_column(column.replace("recall", "Recall").replace("ndcg", "NDCG"), justify="right")
    rounded = {
        name: [round(values[column], 4) if column in values else None for column in columns]
        for name, values in systems.items()
    }
    best = [
        max((value for value in column if value is not None), default=None) if len(systems) > 1 else None
        for column in zip(*rounded.values(), strict=True)
    ]
    for name, values in rounded.items():
        table.add_row(escape(name), *map(_cell, values, best))
    return table


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "–"
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"


def recommendation_table(answer: Sequence[Recommendation]) -> Table:
    """Return a rich table: rank, item id and score, best first."""
    table = Table()
    table.add_column("Rank", justify="right")
    table.add_column("Item", overflow="fold")  # an id that was cut off is none
    table.add_column("Score", justify="right")
    for rank, recommendation in enumerate(answer, start=1):
        table.add_row(str(rank), escape(recommendation.item), f"{recommendation.score:.4f}")
    return table


def presets_table() -> Table:
    """Return the presets, each with its sentence."""
    table = Table(title="Presets", title_justify="left", show_header=False)
    for name, summary in preset_summaries().items():
        table.add_row(name, summary)
    return table


def systems_tables() -> list[Table]:
    """Return the backbones, the methods and the pairs that are refused, each with its sentence."""
    refused: dict[tuple[str, str], list[str]] = {}
    for (backbone, method), reason in REFUSALS.items():
        refused.setdefault((backbone, reason), []).append(method)
    rows = {
        "Backbones": [(name, backbone.description) for name, backbone in BACKBONES.items()],
        "Methods": [(name, method.description) for name, method in METHODS.items()],
        "Not together": [
            (f"{backbone} with {', '.join(methods)}", reason) for (backbone, reason), methods in refused.items()
        ],
    }
    tables = []
    for title, entries in rows.items():
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column(max_width=32)
        table.add_column()
        for entry in entries:
            table.add_row(*entry)
        tables.append(table)
    return tables
