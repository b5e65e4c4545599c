"""Ids that are none, or not quite: with white space around them, or words for a missing value."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from plr.errors import shortened

if TYPE_CHECKING:
    from plr.prepare.interactions import Interactions
    from plr.prepare.parts import Parts

__all__ = ["MISSING", "Words", "described", "trimmed", "without_missing", "words_for_missing"]

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


Words = dict[tuple[str, str], int]
"""Words for missing values among the ids: how many interactions each role and word has."""


def described(words: Words) -> str:
    """Return a sentence about them for a warning."""
    most = sorted(words.items(), key=lambda entry: -entry[1])[:12]
    named = ", ".join(f"{role} {word!r} ({count:,})" for (role, word), count in most)
    return (
        f"ids that are written as missing values are taken as they are, each as one {most[0][0][0]}, with "
        f"so many interactions: {named}; --missing_ids drop leaves them out"
    )


def words_for_missing(parts: Parts) -> Words:
    """Count the ids that are written as missing values are."""
    counts: Words = {("user", word): 0 for word in _places(parts.user_ids)}
    counts |= {("item", word): 0 for word in _places(parts.item_ids)}
    if counts:
        for part in parts:
            for word, number in _places(part.user_ids).items():
                counts["user", word] += int(part.offsets[number + 1] - part.offsets[number])
            for word, number in _places(part.item_ids).items():
                counts["item", word] += int(np.count_nonzero(part.item == number))
    return counts


def without_missing(interactions: Interactions) -> np.ndarray:
    """Return which interactions (bool [N]) have no id that is written as missing values are."""
    kept = np.ones(len(interactions), dtype=bool)
    for number in _places(interactions.user_ids).values():
        kept[interactions.offsets[number] : interactions.offsets[number + 1]] = False
    for number in _places(interactions.item_ids).values():
        kept &= interactions.item != number
    return kept


def _places(ids: pl.Series) -> dict[str, int]:
    """Return the words among the sorted ids, and where each is."""
    places = ids.search_sorted(pl.Series(MISSING, dtype=pl.String)).to_numpy()
    return {
        word: int(place)
        for word, place in zip(MISSING, places, strict=True)
        if place < len(ids) and ids[int(place)] == word
    }
