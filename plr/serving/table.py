"""Recommendations as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from plr.serving.recommender import Recommendation


def recommendation_table(answer: Sequence[Recommendation]) -> Table:
    """Return a rich table: rank, item id and score, best first."""
    table = Table()
    table.add_column("Rank", justify="right")
    table.add_column("Item")
    table.add_column("Score", justify="right")
    for rank, recommendation in enumerate(answer, start=1):
        table.add_row(str(rank), escape(recommendation.item), f"{recommendation.score:.4f}")
    return table
