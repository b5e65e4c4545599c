"""Ids that are none, or not quite: with white space around them, or words for a missing value."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from plr.errors import shortened

if TYPE_CHECKING:
    from plr.prepare.interactions import Interactions

__all__ = ["MISSING", "Words", "trimmed", "words_for_missing"]

MISSING = (
    "nan", "NaN", "NAN", "null", "NULL", "Null", "none", "None", "NONE", "na", "NA", "N/A", "n/a", "#N/A", "<NA>",
    "NaT", "nil", "undefined", "\\N",
)  # fmt: skip
"""How pandas, databases and others write that there is no value."""


def trimmed(ids: pl.Series, rank: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    """Leave out the white space around sorted ids; equal ones become one.

    Args:
        ids: strings [n], sorted by their UTF-8 bytes.
        rank: int32 [n], the place among them of each number.

    Returns:
        The same for the ids without it. So that their number stays, empty ones that nothing refers to come last.
    """
    bare = ids.str.strip_chars()
    changed = bare != ids
    if not changed.any():
        return ids, rank
    warnings.warn(
        f"the white space around {int(changed.sum()):,} ids is left out, "
        f"the first of them {shortened(ids[int(changed.arg_max() or 0)])}",
        stacklevel=2,
    )
    kept = bare.unique().sort()
    place_of = kept.search_sorted(bare).to_numpy().astype(np.int32)
    filler = pl.repeat("", len(ids) - len(kept), dtype=pl.String, eager=True)
    return pl.concat([kept, filler], rechunk=True).alias(ids.name), place_of[rank]


@dataclass(frozen=True)
class Words:
    """Words for missing values among the ids: the interactions of each, and which rows (bool [N]) they are."""

    counts: dict[tuple[str, str], int]
    rows: np.ndarray

    def described(self) -> str:
        """Return a sentence for a warning."""
        most = sorted(self.counts.items(), key=lambda entry: -entry[1])[:12]
        named = ", ".join(f"{role} {word!r} ({count:,})" for (role, word), count in most)
        return (
            f"ids that are written as missing values are taken as they are, each as one {most[0][0][0]}, with "
            f"so many interactions: {named}; --missing_ids drop leaves them out"
        )


def words_for_missing(interactions: Interactions) -> Words:
    """Find the ids that are written as missing values are."""
    counts: dict[tuple[str, str], int] = {}
    rows = np.zeros(0, dtype=bool)
    for role, ids in (("user", interactions.user_ids), ("item", interactions.item_ids)):
        for word, number in _places(ids).items():
            rows = rows if len(rows) else np.zeros(len(interactions), dtype=bool)
            if role == "user":
                start, stop = (int(offset) for offset in interactions.offsets[number : number + 2])
                rows[start:stop] = True
                counts[role, word] = stop - start
            else:
                found = interactions.item == number
                rows |= found
                counts[role, word] = int(np.count_nonzero(found))
    return Words(counts, rows)


def _places(ids: pl.Series) -> dict[str, int]:
    """Return the words among the sorted ids, and where each is."""
    places = ids.search_sorted(pl.Series(MISSING, dtype=pl.String)).to_numpy()
    return {
        word: int(place)
        for word, place in zip(MISSING, places, strict=True)
        if place < len(ids) and ids[int(place)] == word
    }
