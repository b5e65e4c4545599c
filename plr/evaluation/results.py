"""Results on disk: ranks as parquet, metrics as JSON; written aside and renamed, never half a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

from plr.errors import DataError
from plr.evaluation.ranking import Ranking
from plr.files import atomic_path


def save_ranking(path: str | Path, ranking: Ranking, user_ids: pl.Series, item_ids: pl.Series) -> None:
    """Write a ranking as Parquet, a row per ranked target.

    The columns are user and item (int64, the numbers of the data set; the item is the target), rank (float64), and
    user_id and item_id, the external ids of both: user_ids [U] and item_ids [V] are the data set's.
    """
    users, targets = pl.Series("user", ranking.users.numpy()), pl.Series("item", ranking.targets.numpy())
    frame = pl.DataFrame(
        [
            users,
            targets,
            pl.Series("rank", ranking.ranks.numpy()),
            user_ids.gather(users).alias("user_id"),
            item_ids.gather(targets).alias("item_id"),
        ]
    )
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary)


def load_ranking(path: str | Path) -> Ranking:
    """Read a ranking that `save_ranking` wrote.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        frame = pl.read_parquet(path, columns=["user", "item", "rank"], glob=False)
        frame = frame.cast({"user": pl.Int64, "item": pl.Int64, "rank": pl.Float64})
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"not the ranks of a run: {(str(error).splitlines() or ['damaged'])[0]}", path) from error
    if sum(frame.null_count().row(0)) or not frame["rank"].is_finite().all():
        raise DataError("not the ranks of a run: a value is missing or not finite", path)
    return Ranking(*(torch.tensor(frame[name].to_numpy()) for name in ("user", "item", "rank")))


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write (nested) metrics as indented JSON.

    Raises:
        ValueError: a value is NaN or infinite, neither of which JSON has; the message gives its name.
    """
    _check_finite(metrics)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _check_finite(value: Any, name: str = "metrics") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check_finite(inner, f"{name}[{position}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which cannot be a result: check what it was computed from")
