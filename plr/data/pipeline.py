"""prepare: an interaction file -> a SequenceDataset."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from plr.data.cache import CACHE_VERSION, load_cached, save_cached
from plr.data.dataset import SequenceDataset
from plr.data.errors import DataError
from plr.data.filters import keep_core, keep_rated
from plr.data.fingerprint import fingerprint
from plr.data.interactions import Interactions, number
from plr.data.readers import CONTROL_BYTES, FORMATS, Columns, Source, detect_format, read
from plr.data.split import SPLITS, Split, default_cuts, leave_one_out, time_split

__all__ = ["prepare"]


def prepare(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    min_rating: float | None = None,
    core: int = 0,
    split: str = "auto",
    valid_time: float | None = None,
    test_time: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> SequenceDataset:
    """Read an interaction file, filter it, split it, and return its sequences.

    The filters run in this order: minimum rating, then k-core. Users and items are numbered by their sorted
    external ids (strings, compared by their UTF-8 bytes). Where the file has timestamps a user's
    interactions are put in their order, equal ones staying in file order; else file order counts.

    Args:
        path: The file. ``user item item …`` lines, ``user item`` lines, RecBole ``.inter``, CSV with a
            header, or Parquet.
        format: "sequences", "pairs", "recbole", "csv", "parquet", or "auto": by extension, for other names
            by the first lines.
        user_column: Name of the column; by default ``user``, ``user_id``, ``userId`` and the like. So are
            the next three.
        item_column: ``item``, ``item_id``, ``parent_asin``, ``asin`` and the like.
        rating_column: ``rating``, ``overall`` and the like; optional.
        timestamp_column: ``timestamp``, ``time`` and the like; optional. Whole numbers in any unit (``1.0``
            and negative ones too), or in Parquet a date or datetime, which counts in its own unit (days, or
            ms, us, ns since 1970).
        min_rating: Keep the interactions with rating >= min_rating.
        core: Keep only users and items with at least ``core`` interactions among what is kept; 0 or 1 keeps
            all.
        split: "leave-one-out", "time", or "auto": time where the file has timestamps.
        valid_time: For the time split: targets from here on are for validation, in the unit of the
            timestamps; default: the 80 % quantile of the interactions' times.
        test_time: For the time split: targets from here on are for test; default: the 90 % quantile.
        cache_dir: Folder in which the result is kept under the hash of file and options, and found again.

    Raises:
        DataError: for anything in the file that cannot be used, naming file and line; or when no training
            row is left.
        ValueError: for arguments that make no sense.

    Warns:
        UserWarning: naming the first, when users have a single interaction and so make no row; when
            validation or test has no row; when a cache is corrupt.
    """
    path = Path(path)
    _check_arguments(format, min_rating, core, split, valid_time, test_time)
    valid_time, test_time = _plain(valid_time), _plain(test_time)
    if not path.is_file():
        raise DataError("no such file" if not path.exists() else "not a file", path)
    if path.stat().st_size == 0:
        raise DataError("the file is empty", path)
    file_format = detect_format(path) if format == "auto" else format
    columns = Columns(user_column, item_column, rating_column, timestamp_column)
    options = {
        "version": CACHE_VERSION,
        "format": file_format,
        "columns": vars(columns),
        "min_rating": None if min_rating is None else float(min_rating),
        "core": core,
        "split": split,
        "valid_time": valid_time,
        "test_time": test_time,
    }
    content_hash = _content_hash(path, file_format, options)
    folder = None if cache_dir is None else Path(cache_dir) / content_hash[:32]
    dataset = None if folder is None else load_cached(folder, content_hash)
    if dataset is None:
        dataset = _build(path, file_format, columns, min_rating, core, split, valid_time, test_time, content_hash)
        if folder is not None:
            save_cached(dataset, folder)
    _warn(dataset.report, path)
    return dataset


def _check_arguments(
    file_format: str,
    min_rating: float | None,
    core: int,
    split: str,
    valid_time: float | None,
    test_time: float | None,
) -> None:
    if file_format not in ("auto", *FORMATS):
        raise ValueError(f"format must be auto, {', '.join(FORMATS)}; got {file_format!r}")
    if split not in ("auto", "leave-one-out", "time"):
        raise ValueError(f"split must be auto, leave-one-out or time; got {split!r}")
    for name, value in (("min_rating", min_rating), ("valid_time", valid_time), ("test_time", test_time)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number; got {value}")
    if core < 0:
        raise ValueError(f"core must not be negative; got {core}")
    if split == "leave-one-out" and (valid_time is not None or test_time is not None):
        raise ValueError("valid_time and test_time belong to the time split, not to leave-one-out")


def _plain(time: float | None) -> float | None:
    """Return a number as JSON knows it, exact for whole ones."""
    return None if time is None else int(time) if time == int(time) else float(time)


def _content_hash(path: Path, file_format: str, options: dict) -> str:
    lines = file_format in ("sequences", "pairs")
    source = fingerprint(path, text=file_format != "parquet", forbidden=CONTROL_BYTES if lines else b"\0")
    return hashlib.sha256(json.dumps([source, options], sort_keys=True).encode()).hexdigest()


def _build(
    path: Path,
    file_format: str,
    columns: Columns,
    min_rating: float | None,
    core: int,
    split: str,
    valid_time: float | None,
    test_time: float | None,
    content_hash: str,
) -> SequenceDataset:
    source = read(path, file_format, columns)
    interactions = number(source.frame)
    if not len(interactions):
        raise DataError("the file holds no interaction", path)
    report: dict = {"format": file_format, "read": _size(interactions), "filters": []}
    if min_rating is not None:
        if interactions.rating is None:
            raise DataError(
                "min_rating needs a rating column, and the file has none (name it with rating_column)", path
            )
        interactions = _filtered(interactions, keep_rated(interactions, min_rating), "min_rating", min_rating, report)
    if core > 1:
        interactions = _filtered(interactions, keep_core(interactions, core), "core", core, report)
    if not len(interactions):
        raise DataError(f"no interaction is left after the filters: {report['filters']}", path)
    interactions = interactions.in_user_order()
    report["order"] = "file" if interactions.timestamp is None else "timestamp"
    report["single_interaction_users"] = _single_interaction_users(interactions, source)

    made = _split(interactions, path, split, valid_time, test_time)
    if not len(made.targets["train"]):
        raise DataError(
            f"no training row is left: {len(interactions)} interactions of {len(interactions.user_ids)} "
            "users, none of whom has two in training",
            path,
        )
    report |= made.report | _size(made.interactions)
    report["rows"] = {part: len(made.targets[part]) for part in SPLITS}
    return SequenceDataset(
        items=torch.from_numpy(made.interactions.item),
        offsets=torch.from_numpy(made.offsets),
        targets={part: torch.from_numpy(made.targets[part]) for part in SPLITS},
        training_stop=torch.from_numpy(made.training_stop),
        user_ids=made.interactions.user_ids.rename("id"),
        item_ids=made.interactions.item_ids.rename("id"),
        split=report["split"],
        report=report,
        content_hash=content_hash,
    )


def _split(
    interactions: Interactions, path: Path, split: str, valid_time: float | None, test_time: float | None
) -> Split:
    if interactions.timestamp is None:
        if split == "time" or valid_time is not None or test_time is not None:
            raise DataError(
                "the time split needs a timestamp column, and the file has none (name it with timestamp_column)",
                path,
            )
        return leave_one_out(interactions)
    if split == "leave-one-out":
        return leave_one_out(interactions)
    cuts = default_cuts(interactions.timestamp)
    valid_time = cuts[0] if valid_time is None else valid_time
    test_time = cuts[1] if test_time is None else test_time
    if test_time < valid_time:
        raise DataError(f"test_time {test_time} is before valid_time {valid_time}", path)
    return time_split(interactions, valid_time, test_time)


def _filtered(before: Interactions, after: Interactions, name: str, value: float, report: dict) -> Interactions:
    old, new = _size(before), _size(after)
    report["filters"].append({"filter": name, "value": value, "dropped": {key: old[key] - new[key] for key in old}})
    return after


def _size(interactions: Interactions) -> dict[str, int]:
    return {
        "users": len(interactions.user_ids),
        "items": len(interactions.item_ids),
        "interactions": len(interactions),
    }


def _single_interaction_users(interactions: Interactions, source: Source) -> dict:
    counts = np.bincount(interactions.user)
    alone = np.flatnonzero(counts[interactions.user] == 1)
    if not len(alone):
        return {"count": 0}
    first = alone[np.argmin(interactions.row[alone])]
    return {
        "count": len(alone),
        "user": interactions.user_ids[int(interactions.user[first])],
        "line": source.line_of(int(interactions.row[first])),
    }


def _warn(report: dict, path: Path) -> None:
    alone = report["single_interaction_users"]
    if alone["count"]:
        warnings.warn(
            f"{path}:{alone['line']}: user {alone['user']!r} has a single interaction and so makes no row "
            f"({alone['count']} such users)",
            stacklevel=3,
        )
    for part in ("valid", "test"):
        if not report["rows"][part]:
            warnings.warn(f"{path}: no row for {part} in the {report['split']} split", stacklevel=3)
