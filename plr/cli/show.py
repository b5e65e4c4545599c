"""Look at a prepared folder: statistics, histograms, sample sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from plr.cli.tables import print_line, rows_table, sizes_table, skipped_lines
from plr.data import open_prepared
from plr.data.dataset import SequenceDataset
from plr.errors import DataError
from plr.files import atomic_path
from plr.prepare.split import SPLITS

__all__ = ["save_histograms", "show"]

_SHOWN = 12  # items of a sequence
_MARKS = dict(enumerate(("", *SPLITS)))


def show(
    folder: Path, *, plots: Path | None = None, samples: int = 3, seed: int = 0, console: Console | None = None
) -> None:
    """Print statistics and sample sequences of a prepared folder and write its histograms as PNG.

    All files are read and their hashes checked.

    Args:
        folder: What plr prepare wrote.
        plots: Folder for lengths.png and popularity.png; None puts them into ``folder``.
        samples: How many sequences to show.
        seed: Which ones.
        console: Where to print.

    Raises:
        DataError: the folder is none, or damaged; or samples or seed is below 0.
    """
    for name, value in (("samples", samples), ("seed", seed)):
        if value < 0:
            raise DataError(f"{name} must be 0 or more; found {value}")
    console = console or Console()
    dataset = open_prepared(folder, verify=True)
    report = dataset.report
    print_line(console, f"{folder}: as it was written; content {dataset.content_hash[:16]}…")
    for source in report["sources"]:
        print_line(console, f"  from {source['file']} ({source['bytes']:,} bytes)")
    if report.get("protocol"):
        print_line(console, f"  protocol {report['protocol']}")
    console.print(sizes_table(report))
    console.print(rows_table(report))
    lengths, popularity = np.diff(dataset.offsets.numpy()), dataset.popularity().numpy()
    console.print(_quantiles(lengths, popularity))
    for line in [*report.get("notes", []), *skipped_lines(report)]:
        print_line(console, line)
    _print_samples(dataset, samples, seed, console)
    for path in save_histograms(lengths, popularity, plots or folder):
        print_line(console, f"histogram: {path}")


def _quantiles(lengths: np.ndarray, popularity: np.ndarray) -> Table:
    table = Table(title="Distributions", title_justify="left")
    for name in ("", "mean", "min", "25 %", "50 %", "75 %", "99 %", "max"):
        table.add_column(name, justify="left" if not name else "right")
    rows = {"interactions of a user": lengths, "training interactions of an item": popularity}
    for name, values in rows.items():
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.99, 1])
        table.add_row(name, f"{values.mean():.2f}", *(f"{value:,.0f}" for value in quantiles))
    return table


def _print_samples(dataset: SequenceDataset, samples: int, seed: int, console: Console) -> None:
    """Print random users' last items with titles, each target marked with its split."""
    assert dataset.item_features is not None  # it is of a prepared folder
    items = pl.read_parquet(dataset.item_features, glob=False)
    titles = items["title"] if "title" in items.columns else None
    random = np.random.Generator(np.random.PCG64(seed))
    for user in random.permutation(dataset.num_users)[:samples]:
        start, stop = dataset.offsets[user : user + 2].tolist()
        first = max(start, stop - _SHOWN)
        print_line(console, f"user {dataset.user_ids[int(user)]}, {stop - start} interactions:")
        if first > start:
            console.print(f"  … {first - start} earlier ones", highlight=False)
        for position in range(first, stop):
            item = int(dataset.items[position])
            title = titles[item] if titles is not None else None
            text = items["item_id"][item] if title is None else f"{items['item_id'][item]}  {title}"
            mark = _MARKS[int(dataset.roles[position])]
            console.print(f"  {mark:5}  {text}", highlight=False, markup=False, overflow="ellipsis", no_wrap=True)


def save_histograms(lengths: np.ndarray, popularity: np.ndarray, folder: Path) -> list[Path]:
    """Write lengths.png (interactions per user) and popularity.png (training interactions per item, by rank)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for name in ("lengths", "popularity"):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        if name == "lengths":
            edges = np.unique(np.geomspace(1, max(int(lengths.max()), 1) + 1, 50).astype(int))
            axes.hist(lengths, bins=edges.tolist() if len(edges) > 1 else 1)
            axes.set(xscale="log", xlabel="interactions of a user", ylabel="users")
        else:
            ranked = np.sort(popularity)[::-1]
            axes.plot(np.arange(1, len(ranked) + 1), ranked)
            axes.set(xscale="log", yscale="symlog", xlabel="rank of the item", ylabel="training interactions")
            axes.set_ylim(bottom=0)
        path = folder / f"{name}.png"
        with atomic_path(path) as aside:
            FigureCanvasAgg(figure).print_png(str(aside))
        paths.append(path)
    return paths
