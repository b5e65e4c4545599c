"""Everything that decides how interactions become a data set, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal

from plr.prepare.readers import FORMATS, Columns

__all__ = ["PrepareOptions"]

_OF_TIME = ("train_time", "valid_time", "test_time", "low_rated", "min_history", "unseen", "untitled")
_OF_USERS = ("valid_users", "test_users", "split_seed")
_SPLITS_WITH = {
    **dict.fromkeys(_OF_TIME, ("time", "auto")),
    **dict.fromkeys(_OF_USERS, ("users",)),
    "leave_k": ("leave-k-out", "users"),
}
"""Which splits know an option."""
_WHOLE = ("min_interactions", "core", "leave_k", "split_seed")
_NUMBERS = ("min_rating", "valid_users", "test_users", "train_time", "valid_time", "test_time")
_LATER = ("missing_ids", "leave_k", "valid_users", "test_users", "split_seed", "train_time")


@dataclass(frozen=True)
class PrepareOptions:
    """The options of ``prepare``; the filters run in the order in which they stand here.

    Args:
        format: of the file: sequences, pairs, movielens, recbole, csv, parquet, huggingface, or auto.
        user_column: name of the column; by default the usual names are tried. So are the next three.
        item_column: name of the item column.
        rating_column: name of the rating column; optional.
        timestamp_column: name of the timestamp column; optional.
        missing_ids: what to do with ids that are words for a missing value (nan, NULL, None, NA and the like): keep
            them, with a warning; or drop their interactions, and those without any id, which else are an error.
        duplicates: what to do with the later ones of interactions with the same user, item and time: keep or drop.
        min_rating: the least rating that counts as positive.
        low_rated: what to do with interactions rated lower: drop them, or keep them in histories (history) but never
            as a target.
        min_interactions: drop users with fewer interactions; 0 drops none.
        core: keep users and items with at least this many interactions, repeatedly until all have; 0 keeps all.
        split: time; leave-one-out; leave-k-out, the last k interactions of each user for the test and the k before them
            for validation; or users, whole users held out. auto takes time where the file has timestamps, else
            leave-one-out.
        leave_k: leave-k-out: k; users: how many of a held-out user's last interactions are targets.
        valid_users: users split: the share of users held out for validation.
        test_users: users split: the share of users held out for the test.
        split_seed: users split: which users.
        train_time: time split: training targets begin here; what is earlier stands in histories alone.
        valid_time: time split: validation starts here, in the unit of the timestamps; default the 80 % quantile.
        test_time: time split: test starts here; default the 90 % quantile.
        min_history: time split: a row needs at least this many interactions before its target, in training, validation
            and test.
        unseen: time split: items not seen in training leave the sequences (drop-items), or the rows of validation and
            test that hold one are dropped whole (drop-rows).
        untitled: time split with unseen=drop-rows: rows with an item without a title stay (keep) or go (drop-rows).
    """

    format: str = "auto"
    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    timestamp_column: str | None = None
    missing_ids: Literal["keep", "drop"] = "keep"
    duplicates: Literal["keep", "drop"] = "keep"
    min_rating: float | None = None
    low_rated: Literal["drop", "history"] = "drop"
    min_interactions: int = 0
    core: int = 0
    split: Literal["auto", "leave-one-out", "leave-k-out", "users", "time"] = "auto"
    leave_k: int = 1
    valid_users: float = 0.1
    test_users: float = 0.1
    split_seed: int = 0
    train_time: float | None = None
    valid_time: float | None = None
    test_time: float | None = None
    min_history: tuple[int, int, int] = (1, 1, 1)
    unseen: Literal["drop-items", "drop-rows"] = "drop-items"
    untitled: Literal["keep", "drop-rows"] = "keep"

    def __post_init__(self) -> None:
        self._one_of("format", ("auto", *FORMATS))
        self._one_of("split", ("auto", "leave-one-out", "leave-k-out", "users", "time"))
        self._one_of("missing_ids", ("keep", "drop"))
        self._one_of("duplicates", ("keep", "drop"))
        self._one_of("low_rated", ("drop", "history"))
        self._one_of("unseen", ("drop-items", "drop-rows"))
        self._one_of("untitled", ("keep", "drop-rows"))
        self._check_types()
        for name in ("min_rating", "train_time", "valid_time", "test_time"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number; found {value}")
        for name in ("core", "min_interactions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; found {getattr(self, name)}")
        if len(self.min_history) != 3 or min(self.min_history) < 1:
            raise ValueError(
                "min_history must be three numbers (training, validation, test) of at least 1; "
                f"found {self.min_history}"
            )
        self._check_split()
        if self.low_rated == "history" and self.min_rating is None:
            raise ValueError("low_rated='history' needs min_rating")
        if self.untitled == "drop-rows" and self.unseen != "drop-rows":
            raise ValueError("untitled='drop-rows' needs unseen='drop-rows'")

    def _check_types(self) -> None:
        """Refuse what is no number where one belongs."""
        for name in _WHOLE:
            if not _is_number(getattr(self, name), Integral):
                raise ValueError(f"{name} must be a whole number; found {getattr(self, name)!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (value is None and getattr(PrepareOptions, name) is None) and not _is_number(value, Real):
                unit = " in the unit of the timestamps (dates in text count in microseconds)" * name.endswith("_time")
                raise ValueError(f"{name} must be a number{unit}; found {value!r}")
        least = self.min_history
        if not isinstance(least, Sequence) or not all(_is_number(each, Integral) for each in least):
            raise ValueError(f"min_history must be three whole numbers (training, validation, test); found {least!r}")

    def _check_split(self) -> None:
        """Refuse what another split than the chosen one has."""
        if self.leave_k < 1:
            raise ValueError(f"leave_k must be at least 1; found {self.leave_k}")
        for name in ("valid_users", "test_users"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1); found {getattr(self, name)}")
        if self.valid_users + self.test_users >= 1:
            raise ValueError(
                f"valid_users and test_users must leave users to train on, below 1 together; found {self.valid_users} "
                f"and {self.test_users}"
            )
        for name, splits in _SPLITS_WITH.items():
            if self.split not in splits and getattr(self, name) != getattr(PrepareOptions, name):
                named = " and the ".join(each for each in splits if each != "auto")
                raise ValueError(f"{name}={getattr(self, name)!r} belongs to the {named} split, not to {self.split}")

    @property
    def columns(self) -> Columns:
        """The names of the columns."""
        return Columns(self.user_column, self.item_column, self.rating_column, self.timestamp_column)

    @property
    def needs_time_split(self) -> bool:
        """Whether an option is set that only the time split knows."""
        return self.split == "time" or any(
            getattr(self, name) != getattr(PrepareOptions, name)
            for name in _OF_TIME
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields, equal for options that mean the same."""
        values = asdict(self)
        for name in ("min_rating", "train_time", "valid_time", "test_time"):
            values[name] = _plain(values[name])
        values["min_history"] = list(self.min_history)
        for name in _LATER:  # that data sets prepared before them do not name
            if values[name] == getattr(PrepareOptions, name):
                del values[name]
        return values

    def _one_of(self, name: str, accepted: tuple[str, ...]) -> None:
        if getattr(self, name) not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}; found {getattr(self, name)!r}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _plain(number: float | None) -> float | None:
    """Return a number as JSON knows it, exact for whole ones."""
    return None if number is None else int(number) if number == int(number) else float(number)
