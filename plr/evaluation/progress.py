"""A progress bar for rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def ranking_progress(
    what: str, rows: int | None, *, shown: bool = True, unit: str = "rows", stderr: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield the `on_batch` of `rank_rows` that moves a bar over `rows` rows, or as many as there are where it is None.

    The bar goes when all is done. It is shown on a terminal and in a notebook.
    """
    console = Console(stderr=stderr)
    shown = shown and (console.is_terminal or console.is_jupyter)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=rows)
        yield lambda count: progress.advance(task, count)
