"""The most popular items, for users of whom nothing is known."""

from __future__ import annotations

from numbers import Real
from pathlib import Path

import numpy as np
import polars as pl

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import ConfigError, DataError, RunError, UserError
from plr.inputs import OPTIONS, data_of_run, load_dataset
from plr.prepare.folder import is_prepared
from plr.prepare.options import PrepareOptions
from plr.prepare.pipeline import Preparation
from plr.prepare.readers import detect_format, find_interactions
from plr.prepare.sources import SourceFiles
from plr.prepare.timestamps import unit_of
from plr.runs import RunFolder
from plr.serving.categories import CategoryLimit
from plr.serving.filters import ItemFilter
from plr.serving.item_numbers import ItemNumbers

__all__ = ["check_days", "most_popular", "popularity_of_run", "recent_popularity"]

PER_DAY = {"seconds": 86_400, "milliseconds": 86_400 * 10**3, "microseconds": 86_400 * 10**6,
           "nanoseconds": 86_400 * 10**9}  # fmt: skip
"""A day in each unit of times."""


def popularity_of_run(path: Path) -> np.ndarray:
    """Return how often each item occurs in a run's training data, int64 [V]; of older runs from the data themselves.

    Raises:
        RunError: the run does not say, and its data are not there or have changed.
        DataError: the file is damaged.
    """
    folder = RunFolder(path)
    config, items = folder.require_finished(), folder.read_item_ids()
    recorded = folder.read_popularity()
    if recorded is not None:
        if len(recorded) != len(items):
            raise DataError(f"{len(recorded)} numbers; the run has {len(items)} items", folder.popularity)
        if not recorded.dtype.is_integer() or recorded.null_count() or (recorded < 0).any():
            raise DataError(
                "must hold how often each item occurs, whole numbers from 0 on; found "
                f"{recorded.dtype} with {recorded.null_count()} missing, from {recorded.min()!r} on",
                folder.popularity,
            )
        return recorded.to_numpy()
    try:
        dataset = load_dataset(config, run=path)
    except (UserError, OSError) as error:
        raise RunError(
            f"users without a known item get the most popular ones, which {path} does not record; its data are not "
            f"available: {error}"
        ) from error
    recorded_hash = (config.provenance or {}).get("data_hash")
    if dataset.content_hash != recorded_hash or dataset.item_ids.to_list() != items:
        raise RunError(
            f"users without a known item get the most popular ones, which {path} does not record; {config.data} has "
            "changed since it was trained"
        )
    return dataset.training_popularity(config.refit).numpy()


def recent_popularity(
    run: Path | None, config: Config, numbers: ItemNumbers, days: float | None, data: str | Path | None
) -> np.ndarray:
    """Return how often each item occurs in interactions, those of the last days: int64 [V].

    Args:
        run: the run's folder.
        config: its configuration; of other data its names of columns and `min_rating` hold.
        numbers: of its items.
        days: before the latest interaction; None: all.
        data: a file of interactions; None: what the run was trained on.

    Raises:
        RunError: the run's data are not there, have changed, or hold no times.
        DataError: the file cannot be used, has no times of a known unit, or none of the run's items.
    """
    item_ids, items, times, unit, path = (
        _of_training(run, config) if data is None else _of_file(Path(data), config)
    )
    if days is not None:
        if times is None or unit not in PER_DAY:
            found = "none" if times is None else f"times of no known unit (from {times.min()} to {times.max()})"
            raise DataError(f"popularity of the last days needs times, and it has {found}", path)
        items = items[times > times.max() - days * PER_DAY[unit]]
    of_items = numbers.of(item_ids)
    found_items = of_items[items]
    if not (found_items >= 0).any():
        raise DataError(
            f"none of {len(items):,} interactions{'' if days is None else ' of the last days'} is with an item of the "
            f"run, which has {len(numbers):,}: nothing says what is popular",
            path,
        )
    return np.bincount(found_items[found_items >= 0], minlength=len(numbers)).astype(np.int64)


Times = tuple[pl.Series, np.ndarray, np.ndarray | None, str | None, Path]
"""Item ids, the items and times of interactions as numbers, the unit of the times, and the file."""


def _of_training(run: Path | None, config: Config) -> Times:
    """Return what a run was trained on, read again: the prepared data set in it has no times."""
    assert run is not None
    path = data_of_run(run, config)
    if is_prepared(path):
        raise RunError(
            f"popularity of the last days needs times, and {run} was trained on the prepared folder {path}, which "
            "holds none; name a file of interactions (popularity_data)"
        )
    options = PrepareOptions(**{name: getattr(config, name) for name in OPTIONS})
    job = Preparation(SourceFiles([find_interactions(path)], options), options, keeps_times=True)
    dataset = SequenceDataset.of(job.build())
    if dataset.content_hash != (config.provenance or {}).get("data_hash"):
        raise RunError(f"{config.data} has changed since {run} was trained; name interactions (popularity_data)")
    if config.refit:
        dataset = dataset.with_validation_in_training()
    offsets, stops = dataset.offsets.numpy(), dataset.training_stop.numpy()
    inside = np.arange(len(dataset.items)) < np.repeat(stops, np.diff(offsets))
    times = None if job.times is None else job.times[inside]
    return dataset.item_ids, dataset.items.numpy()[inside], times, dataset.report.get("time_unit"), path


def _of_file(path: Path, config: Config) -> Times:
    if is_prepared(path):
        raise DataError("a prepared folder holds no times; name a file of interactions", path)
    columns = (config.user_column, config.item_column, config.rating_column, config.timestamp_column)
    path = find_interactions(path)
    if not path.exists():
        raise DataError("no such file", path)
    file_format = detect_format(path)
    named = columns if file_format in ("csv", "recbole", "parquet", "huggingface") else (None,) * 4
    options = PrepareOptions(file_format, *named, min_rating=config.min_rating)
    sources = SourceFiles([path], options)
    try:
        interactions, _ = sources.read()
    except DataError as error:
        raise sources.first_cause(error) from error.__cause__
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if interactions.positive is not None:
        interactions = interactions.take(interactions.positive)
    times = interactions.timestamp
    unit = None if times is None or not len(times) else unit_of(int(times.max()))
    return interactions.item_ids, interactions.item, times, unit, path


def check_days(days: float | None) -> None:
    """Refuse what is no number of days.

    Raises:
        ConfigError: it is none.
    """
    if days is not None and not (isinstance(days, Real) and not isinstance(days, bool) and 0 < days < np.inf):
        raise ConfigError(f"popularity_days must be a number above 0; found {days!r}")


def most_popular(
    counts: np.ndarray, users: int, k: int, filters: ItemFilter, limit: CategoryLimit | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores float32 [users, k] and items int64 [users, k], the most popular first, ties to the smaller number.

    Args:
        counts: int64 [V], how often each item occurs.
        users: how many.
        k: how many items of each.
        filters: what each user may get; −inf and −1 fill up where fewer are left.
        limit: how many items of a category each may get.
    """
    if limit is not None:
        return limit.fill(lambda rows, wide: most_popular(counts, len(rows), wide, filters.take(rows)), users, k)
    order = np.argsort(-counts, kind="stable")
    allowed, denied = filters.allowed(), filters.denied
    scores = np.full((users, k), -np.inf, dtype=np.float32)
    items = np.full((users, k), -1, dtype=np.int64)
    for user in range(users):
        if user == 0 or (allowed is not None and len(allowed) > 1):
            left = order if allowed is None else order[allowed[user][order]]
        best = left[:k]
        if denied is not None:
            own = denied.ids[denied.offsets[user] : denied.offsets[user + 1]]
            best = left[: k + len(own)]
            best = best[~np.isin(best, own)][:k]
        scores[user, : len(best)], items[user, : len(best)] = counts[best], best
    return scores, items
