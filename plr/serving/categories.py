"""At most n items of a category in a list, exactly: a walk down the whole ranking, as far as it takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from plr.errors import ConfigError, listed, shortened
from plr.items.features import read_features
from plr.serving.ragged import Ragged

__all__ = ["CategoryLimit", "numbered_categories"]

CANDIDATES = 2**22
"""The most candidates that are ranked together, times the most categories of an item; of one history all it takes."""
_FIELD = "categories"
Ranked = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""What ranks for some histories: their numbers int64 [n] and k, to scores and items [n, k], best first, -1 behind."""


@dataclass(frozen=True, eq=False)
class CategoryLimit:
    """Lists in which no category has more than `most` items.

    A list is what a walk down the ranking takes: each item none of whose categories has `most` items in the list yet.
    An item counts in each of its categories; one without any is always taken.

    Attributes:
        most: n, at least 1.
        categories: of each of V items the numbers of its categories, each once.
    """

    most: int
    categories: Ragged

    @classmethod
    def of(
        cls,
        item_ids: Sequence[str],
        at_most: Any,
        categories: Mapping[Any, Any] | str | os.PathLike[str] | Ragged | None,
        field: str | None = None,
    ) -> CategoryLimit | None:
        """Read what a caller gives; None where both are None.

        Args:
            item_ids: of items 0..V-1.
            at_most: n.
            categories, field: as `numbered_categories` takes them, or what it returned.

        Raises:
            ConfigError: one of both is missing, a field is named where no file is, or n is below 1.
            TypeError: of another kind.
            As `numbered_categories`.
        """
        if categories is None or isinstance(categories, Ragged):
            _refuse_field(field)
        if at_most is None and categories is None:
            return None
        if at_most is None or categories is None:
            raise ConfigError(
                "at_most and categories belong together: how many items of a category a list may hold, and which "
                "category each item has"
            )
        if not isinstance(at_most, Integral) or isinstance(at_most, bool):
            raise TypeError(f"at_most must be a whole number; found {at_most!r}")
        if at_most < 1:
            raise ConfigError(f"at_most must be at least 1; found {at_most}")
        if not isinstance(categories, Ragged):
            categories = numbered_categories(item_ids, categories, field)
        elif len(categories) != len(item_ids):
            raise ValueError(f"categories must be those of {len(item_ids)} items; found {len(categories)}")
        return cls(int(at_most), categories)

    def fill(self, ranked: Ranked, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the lists: scores [rows, k] and items int64 [rows, k]; −inf and −1 where the ranking ends before.

        Lists that 2k candidates do not fill are walked anew over four times as many, until all items are ranked or each
        other one has a category that is full.
        """
        scores, items = np.full((rows, k), -np.inf, np.float32), np.full((rows, k), -1, dtype=np.int64)
        count, widest = len(self.categories), max(1, int(self.categories.lengths.max(initial=0)))
        left, wide = np.arange(rows), min(count, 2 * k)
        while len(left):
            unfilled = []
            together = max(1, CANDIDATES // (wide * widest))
            for first in range(0, len(left), together):
                part = left[first : first + together]
                found, candidates = ranked(part, wide)
                scores = scores.astype(found.dtype, copy=False)  # float64 of a model that is
                taken = self._walk(candidates, k)
                row, place = np.nonzero(taken)
                column = (np.cumsum(taken, axis=1) - 1)[row, place]
                scores[part[row], column], items[part[row], column] = found[row, place], candidates[row, place]
                over = (taken.sum(axis=1) == k) | (candidates[:, -1] < 0)
                unfilled.append(part[~over])
            left = np.concatenate(unfilled) if wide < count else left[:0]
            left = left[[not self._exhausted(items[row]) for row in left]] if len(left) else left
            wide = min(count, 4 * wide)
        return scores, items

    def _walk(self, candidates: np.ndarray, k: int) -> np.ndarray:
        """Return which of the candidates [n, K], best first, -1 behind, the walks take: bool [n, K], k at most.

        In each of at most k steps every walk takes the best candidate that it still can: that is a pass over its
        candidates, while going from one to the next would take as many steps as there are.
        """
        rows, wide = candidates.shape
        lists = self.categories.take(np.maximum(candidates, 0).reshape(-1))
        numbers = lists.padded(-1).reshape(rows, wide, -1)  # [n, K, C]
        real = numbers >= 0
        # A slot for each category that occurs in a row; the last for what is none, which is never full.
        pairs = np.arange(rows)[:, None, None] * (int(self.categories.ids.max(initial=0)) + 1) + numbers
        found, slots = np.unique(pairs[real], return_inverse=True)
        slot = np.full(numbers.shape, len(found), dtype=np.int64)
        slot[real] = slots.reshape(-1)
        counts = np.zeros(len(found) + 1, dtype=np.int64)
        taken, can_take = np.zeros((rows, wide), dtype=bool), candidates >= 0  # what a walk can still take
        for _ in range(k):
            place = can_take.argmax(axis=1)
            row = can_take[np.arange(rows), place].nonzero()[0]
            if not len(row):
                break
            place = place[row]
            taken[row, place], can_take[row, place] = True, False
            here = slot[row, place]  # [m, C]
            np.add.at(counts, here.reshape(-1), 1)
            counts[-1] = 0
            full = counts[here] == self.most
            for column in range(full.shape[1]):
                filled = row[full[:, column]]
                if len(filled):
                    can_take[filled] &= (slot[filled] != here[full[:, column], column, None, None]).all(axis=2)
        return taken

    def _exhausted(self, items: np.ndarray) -> bool:
        """Whether each item that a list [n], -1 for none, does not hold has a category that is full in it."""
        held = items[items >= 0]
        all_ids = self.categories.ids
        counts = np.bincount(self.categories.take(held).ids, minlength=int(all_ids.max(initial=-1)) + 1)
        # How many of the categories up to each item's are full; an item has none where that does not grow.
        full = np.concatenate([[0], np.cumsum(counts[all_ids] >= self.most)])[self.categories.offsets]
        can_be_taken = np.diff(full) == 0
        can_be_taken[held] = False
        return not can_be_taken.any()


def numbered_categories(
    item_ids: Sequence[str], categories: Mapping[Any, Any] | str | os.PathLike[str], field: str | None = None
) -> Ragged:
    """Return the numbers of the categories of items 0..V-1, of each item each once.

    Args:
        item_ids: of the items.
        categories: from item ids to a category, or a list of them; or a file of item features (`plr train
            --features`), or a prepared folder.
        field: of the file; None: "categories", or the only one that there is.

    Raises:
        ConfigError: the file has several fields, or a field is named of a mapping; the mapping names an item twice, or
            none of the run's.
        TypeError: categories of another kind.
        DataError: the file cannot be used.
    """
    if isinstance(categories, Mapping):
        _refuse_field(field)
        return _of_mapping(item_ids, categories)
    if not isinstance(categories, (str, os.PathLike)):
        raise TypeError(
            f"categories must be a mapping from item ids, or the path of a file; found {shortened(categories)}"
        )
    path = Path(categories)
    fields = read_features(path, item_ids, None if field is None else [field])
    named = [each for each in fields if each.name == _FIELD] if len(fields) > 1 else fields
    if not named:
        raise ConfigError(
            f"{path}: has fields {listed(each.name for each in fields)}; say which holds the categories "
            "(category_field)"
        )
    return Ragged(named[0].values.numpy(), named[0].offsets.numpy())


def _refuse_field(field: str | None) -> None:
    if field is not None:
        raise ConfigError(f"category_field is a field of categories that are a file; found {field!r} without one")


def _of_mapping(item_ids: Sequence[str], categories: Mapping[Any, Any]) -> Ragged:
    of_id = {str(item).strip(): given for item, given in categories.items()}
    if len(of_id) < len(categories):
        ids = Counter(str(item).strip() for item in categories)
        raise ConfigError(f"categories names the item {ids.most_common(1)[0][0]!r} more than once")
    if of_id and of_id.keys().isdisjoint(item_ids):
        raise ConfigError(
            f"categories must name items of the run, such as {listed(item_ids[:3])}; "
            f"found {listed(list(of_id)[:3])}"
        )
    number: dict[str, int] = {}
    lists = []
    for item in item_ids:
        given = of_id.get(item)
        if isinstance(given, (str, Integral)):
            given = [given]
        elif given is None:
            given = []
        elif not isinstance(given, Iterable):
            raise TypeError(f"categories of item {item!r} must be a category or a list; found {shortened(given)}")
        names = {str(each).strip() for each in given if each is not None} - {""}
        lists.append(sorted(number.setdefault(name, len(number)) for name in names))
    return Ragged.of(lists)
