"""A progress bar for rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def ranking_progress(what: str, rows: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield the `on_batch` of `rank_rows` that moves a bar over `rows` rows; the bar goes when all is done."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=rows)
        yield lambda count: progress.advance(task, count)
