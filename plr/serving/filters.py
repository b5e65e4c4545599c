"""Which items may be recommended: `only`, `where` and `exclude`, for all histories or for each its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from plr.errors import RequestError, shortened
from plr.serving.item_numbers import is_id
from plr.serving.ragged import Ragged

__all__ = ["ItemFilter"]

@dataclass(frozen=True, eq=False)
class ItemFilter:
    """What may be recommended to B histories: what every part allows that is not None.

    Attributes:
        count: V.
        shared: bool [V], the items that all histories may get.
        own: bool [B, V], those that each may get.
        listed: the numbers of those that each may get, where a history has such a list (`restricted`).
        restricted: bool [B].
        denied: the numbers of those that each must not get.
    """

    count: int
    shared: np.ndarray | None = None
    own: np.ndarray | None = None
    listed: Ragged | None = None
    restricted: np.ndarray | None = None
    denied: Ragged | None = None

    @classmethod
    def of(
        cls, number_of: Mapping[str, int], histories: int, only: Any = None, exclude: Any = None, where: Any = None
    ) -> ItemFilter:
        """Read what a caller gives.

        Args:
            number_of: the number of each external id.
            histories: B.
            only: item ids, or a list of item ids (or None) for each history.
            exclude: likewise.
            where: bool [V] or [B, V], an array or what NumPy makes one of.

        Raises:
            TypeError, ValueError: something else.
            RequestError: `only` names no known item, or nothing is left that every history may get.
        """
        count = len(number_of)
        shared, own = None, None
        if where is not None:
            where = np.array(where)
            if where.dtype != np.bool_:
                raise TypeError(f"where must be booleans; found {where.dtype}")
            if where.shape not in ((count,), (histories, count)):
                raise ValueError(
                    f"where must have shape [V] or [B, V], [{count}] or [{histories}, {count}]; "
                    f"found {list(where.shape)}"
                )
            shared, own = (where, None) if where.ndim == 1 else (None, where)
        listed, restricted, denied = None, None, None
        if only is not None:
            values, nested = _ids("only", only, histories)
            if nested:
                restricted = np.array([each is not None for each in values], dtype=bool)
                listed = Ragged.of([_numbers("only", number_of, each) for each in values])
                empty = np.flatnonzero(restricted & (listed.lengths == 0))
                if len(empty):
                    raise RequestError(f"only of history {empty[0]} names no item that training has seen")
            else:
                allowed = np.zeros(count, dtype=bool)
                allowed[_numbers("only", number_of, values)] = True
                if not allowed.any():
                    raise RequestError("only names no item that training has seen")
                shared = allowed if shared is None else shared & allowed
        if exclude is not None:
            values, nested = _ids("exclude", exclude, histories)
            if nested:
                # A list that stands there for many histories is read once.
                lists = {id(each): each for each in values}
                read = {place: _numbers("exclude", number_of, each) for place, each in lists.items()}
                denied = Ragged.of([read[id(each)] for each in values])
            else:
                shared = np.ones(count, dtype=bool) if shared is None else shared.copy()
                shared[_numbers("exclude", number_of, values)] = False
        if shared is not None and not shared.any():
            raise RequestError("only, exclude and where together leave no item")
        return cls(count, shared, own, listed, restricted, denied)

    def take(self, rows: np.ndarray) -> ItemFilter:
        """Return what some of the histories may get."""
        return ItemFilter(
            self.count,
            self.shared,
            None if self.own is None else self.own[rows],
            None if self.listed is None else self.listed.take(rows),
            None if self.restricted is None else self.restricted[rows],
            None if self.denied is None else self.denied.take(rows),
        )

    def allowed(self) -> np.ndarray | None:
        """Return what histories may get, but for what is denied: bool [1, V] where all the same, else [B, V]."""
        masks = [] if self.shared is None else [self.shared[None]]
        if self.own is not None:
            masks.append(self.own)
        if self.listed is not None and self.restricted is not None:
            mask = np.repeat(~self.restricted[:, None], self.count, axis=1)
            mask[np.repeat(np.arange(len(mask)), self.listed.lengths), self.listed.ids] = True
            masks.append(mask)
        if not masks:
            return None
        result = masks[0]
        for mask in masks[1:]:
            result = result & mask
        return result


def _ids(name: str, given: Any, histories: int) -> tuple[list[Any], bool]:
    """Return item ids, or what may be item ids for each history, and whether it is the latter."""
    accepted = f"{name} must be a list of item ids, or for each history such a list"
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"{accepted}; found {shortened(given)}")
    values = list(given)
    odd = next((each for each in values if isinstance(each, (bool, np.bool_))), None)
    if odd is not None:
        raise TypeError(f"{accepted}; found {odd!r}: a mask of all items is given as where")
    single = [isinstance(each, (str, Integral)) for each in values]
    if all(single):
        return values, False
    for each in values:
        if isinstance(each, (str, Integral)) or not (each is None or isinstance(each, Iterable)):
            raise TypeError(f"{accepted}; found {shortened(each)} among lists")
    if len(values) != histories:
        raise ValueError(f"{name} must have a list for each of the {histories} histories; found {len(values)}")
    return values, True


def _numbers(name: str, number_of: Mapping[str, int], ids: Iterable[str | int] | None) -> list[int]:
    """Return the numbers of the ids that training has seen; others cannot be recommended anyway.

    Raises:
        TypeError: what is no number's is no id either: it would never be one.
    """
    numbers = []
    for each in () if ids is None else ids:
        number = number_of.get(str(each))
        if number is not None:
            numbers.append(number)
        elif not is_id(each):
            raise TypeError(f"{name} must hold item ids, texts or whole numbers; found {shortened(each)}")
    return numbers
