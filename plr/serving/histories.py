"""Frames of interactions, or of histories, as lists of item numbers, a list for each user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from plr.errors import DataError, RequestError, listed, shortened
from plr.prepare.readers import Columns
from plr.prepare.readers.columns import find_columns, least_rating
from plr.serving.item_numbers import ItemNumbers, is_id
from plr.serving.ragged import Ragged

__all__ = ["HISTORY", "UserHistories", "histories_of", "split_history"]

HISTORY = "history"
"""The usual name of a column of lists of items."""


@dataclass(frozen=True, eq=False)
class UserHistories:
    """B users and what they did.

    Attributes:
        users: their ids, as they were given [B].
        items: the numbers of those items that the run knows, oldest first; of some users none.
        interactions: how many there were.
        unknown: how many of them with items that the run does not know.
    """

    users: pl.Series
    items: Ragged
    interactions: int
    unknown: int

    @classmethod
    def of(cls, users: pl.Series, numbers: np.ndarray, lengths: np.ndarray) -> UserHistories:
        """Return the histories of these lengths that stand one after the other, -1 for items that are unknown."""
        known = np.concatenate([[0], np.cumsum(numbers >= 0)])
        offsets = known[np.concatenate([[0], np.cumsum(lengths)])]
        return cls(users, Ragged(numbers[numbers >= 0], offsets), len(numbers), len(numbers) - int(known[-1]))


def histories_of(
    frame: pl.DataFrame,
    wanted: Columns,
    numbers: ItemNumbers,
    *,
    min_rating: float | None = None,
    strict: bool = False,
) -> UserHistories:
    """Return the histories of a frame, in the order in which the users come.

    Args:
        frame: a row per interaction, a history being a user's rows in the order of the timestamps (without: of the
            frame); or a row per history, a list of item ids or a text of them in the column `history`, or in the one
            that is named as the item column.
        wanted: the names of the columns, where they are not the usual ones.
        numbers: of the run's items.
        min_rating: leave out interactions rated below, where the frame has ratings; their users stay.
        strict: refuse items that the run does not know.

    Raises:
        DataError: a column is missing or holds something else.
        RequestError: strict, and an item is unknown.
    """
    if wanted.item is None and HISTORY in frame.columns:
        wanted = Columns(wanted.user, HISTORY, wanted.rating, wanted.timestamp)
    found = find_columns(frame.columns, wanted, Path("the frame"), None)
    user, item, time = found["user"], found["item"], found.get("timestamp")
    _check(frame, user, "ids", text=True)
    in_lists = frame[item].dtype in (pl.List, pl.Array)
    if in_lists or item == HISTORY:
        lists = _lists(frame[item])
        ids, lengths = lists.filter(lists.list.len() > 0).explode(), lists.list.len().to_numpy().astype(np.int64)
        users = frame[user]
    else:
        _check(frame, item, "ids", text=True)
        as_given = frame[user]
        if time is not None:
            _check(frame, time, "numbers or dates", text=False)
            frame = frame.sort(time, maintain_order=True)
        kept = pl.col(item)
        if min_rating is not None and "rating" in found:
            rating = found["rating"]
            _check_ratings(frame[rating])
            kept = kept.filter(pl.col(rating).cast(pl.Float64) >= least_rating(min_rating, frame[rating].dtype))
        grouped = frame.group_by(user, maintain_order=True).agg(kept)
        if time is not None:  # whose order is that of the frame, as lists of filters have it, not that of the times
            in_frame = as_given.unique(maintain_order=True).to_frame()
            grouped = in_frame.join(grouped, on=user, how="left", maintain_order="left")
        users, lists = grouped[user], grouped[item]
        ids, lengths = lists.filter(lists.list.len() > 0).explode(), lists.list.len().to_numpy().astype(np.int64)
    ids = ids.cast(pl.String).str.strip_chars()
    found_numbers = numbers.of(ids)
    if strict and (found_numbers < 0).any():
        unknown = ids.filter(pl.Series(found_numbers < 0)).unique(maintain_order=True)
        raise RequestError(
            f"items never seen in training: {listed(unknown)}; leave them out or skip them "
            '(unknown="skip", on the command line --unknown skip)'
        )
    return UserHistories.of(users, found_numbers, lengths)


def split_history(text: str) -> Sequence[str]:
    """Return the item ids of a text: a JSON list of them, or ids separated by blanks."""
    if text.lstrip()[:1] == "[":
        try:
            ids = json.loads(text)
        except (ValueError, RecursionError):
            ids = None
        if isinstance(ids, list) and all(map(is_id, ids)):
            return [str(each) for each in ids]
    return text.split()


def _lists(column: pl.Series) -> pl.Series:
    """Return a column of histories as lists."""
    if column.dtype == pl.Array:
        column = column.arr.to_list()
    if column.dtype == pl.String:
        return pl.Series(column.name, [split_history(text or "") for text in column], dtype=pl.List(pl.String))
    inner = getattr(column.dtype, "inner", None)
    if inner is None or not (inner == pl.String or inner.is_integer() or inner == pl.Null):
        raise DataError(
            f"column {shortened(column.name)} must hold lists of item ids, or texts of ids separated by blanks; "
            f"found {column.dtype}"
        )
    column = column.fill_null([])
    if column.list.eval(pl.element().is_null()).list.any().any():
        raise DataError(f"column {shortened(column.name)} holds a list with a missing id")
    return column


def _check(frame: pl.DataFrame, name: str, accepted: str, *, text: bool) -> None:
    column = frame[name]
    is_text = column.dtype in (pl.String, pl.Categorical, pl.Enum)
    odd = column.dtype.is_float() and (text or not (column.is_finite() & (column == column.floor())).all())
    if column.null_count() or odd or column.dtype.is_nested() or (is_text and not text):
        raise DataError(
            f"column {name!r} of a frame of histories must hold {accepted}, whole and none missing; found "
            f"{column.dtype} with {column.null_count()} missing"
        )


def _check_ratings(column: pl.Series) -> None:
    if not column.dtype.is_numeric() or column.null_count() or (column.dtype.is_float() and column.is_nan().any()):
        raise DataError(
            f"column {column.name!r} must hold numbers, none missing, as the run has a min_rating; found "
            f"{column.dtype} with {column.null_count()} missing"
        )
