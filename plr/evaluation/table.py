"""Metrics of several systems side by side, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

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
