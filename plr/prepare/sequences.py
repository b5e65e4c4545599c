"""The split parts, one after the other: the arrays of the prepared folder, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.prepare.block_file import BlockFile
from plr.prepare.blocks import by_blocks, mark
from plr.prepare.interactions import gather
from plr.prepare.parts import Parts, Whole
from plr.prepare.split import SPLITS, Rule, Split, report_of, splits_of

__all__ = ["ArrayOnDisk", "Sequences", "split_all"]


@dataclass(frozen=True, eq=False)
class ArrayOnDisk:
    """A one-dimensional array in a BlockFile of one column; with ``number_of`` its entries are looked up there."""

    file: BlockFile
    number_of: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype:
        """The type of the entries."""
        return self.file.dtypes[0]

    def __len__(self) -> int:
        return sum(self.file.lengths(block)[0] for block in range(len(self.file)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the array in memory."""
        return np.concatenate([np.zeros(0, self.dtype), *self.blocks()]).astype(dtype or self.dtype, copy=False)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the array block by block."""
        for (block,) in self.file:
            yield block if self.number_of is None else gather(self.number_of, block)


@dataclass(eq=False)
class Sequences:
    """What all parts make together.

    ``items`` int32 [N], ``offsets`` int64 [U+1], ``roles`` uint8 [N] and ``training_stop`` int64 [U] are those of the
    folder, ``timestamp`` int64 [N] the times; that is None where there are none, and of partitions. ``report`` is the
    split's, ``rows`` says how many targets each split has, and ``times`` when its first and last are.
    """

    items: np.ndarray | ArrayOnDisk
    offsets: np.ndarray
    roles: np.ndarray | ArrayOnDisk
    training_stop: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    timestamp: np.ndarray | None
    report: dict
    rows: dict[str, int]
    times: dict[str, list[int]] | None

    def __len__(self) -> int:
        return int(self.offsets[-1])


def split_all(parts: Parts, rule: Rule, disk: Path | None) -> Sequences:
    """Split all parts by the rule. Of several parts the arrays [N] are written to ``disk``, to files without a name."""
    if isinstance(parts, Whole):
        (split,) = splits_of(parts, rule)
        return _sequences_of(split)
    assert disk is not None
    items, roles = BlockFile(disk, [np.int32]), BlockFile(disk, [np.uint8])
    used = np.zeros(len(parts.item_ids), dtype=bool)
    pieces, rows = [], np.zeros(len(SPLITS), dtype=np.int64)
    for split in splits_of(parts, rule):
        piece = _sequences_of(split)
        assert isinstance(piece.items, np.ndarray)
        assert isinstance(piece.roles, np.ndarray)
        mark(used, piece.items)
        items.append(piece.items)
        roles.append(piece.roles)
        rows += split.rows
        piece.items = piece.roles = np.zeros(0)  # all that is long
        piece.timestamp = None
        piece.report = split.report
        pieces.append(piece)
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    number_of = None if used.all() else np.cumsum(used, dtype=np.int32) - np.int32(1)
    has_times = pieces[0].times is not None
    return Sequences(
        ArrayOnDisk(items, number_of),
        np.concatenate([[0], *(piece.offsets[1:] + start for piece, start in zip(pieces, starts, strict=False))]),
        ArrayOnDisk(roles),
        np.concatenate([piece.training_stop + start for piece, start in zip(pieces, starts, strict=False)]),
        pl.concat([piece.user_ids for piece in pieces], rechunk=True),
        parts.item_ids.filter(pl.Series(used)),
        None,
        report_of([piece.report for piece in pieces], rows),
        {part: sum(piece.rows[part] for piece in pieces) for part in SPLITS},
        _together([piece.times or {} for piece in pieces]) if has_times else None,
    )


def _sequences_of(split: Split) -> Sequences:
    kept = split.interactions
    return Sequences(
        kept.item,
        split.offsets,
        split.roles,
        split.training_stop,
        kept.user_ids,
        kept.item_ids,
        kept.timestamp,
        report_of([split.report], split.rows),
        {part: int(np.count_nonzero(split.roles == code)) for code, part in enumerate(SPLITS, start=1)},
        None if kept.timestamp is None else _times(kept.timestamp, split.roles),
    )


def _times(times: np.ndarray, roles: np.ndarray) -> dict[str, list[int]]:
    """Return the first and last time of each split's targets."""

    def span(block: slice) -> list[np.ndarray]:
        chosen = [times[block][np.flatnonzero(roles[block] == code)] for code in range(1, len(SPLITS) + 1)]
        return [each[:0] if not len(each) else np.array([each.min(), each.max()]) for each in chosen]

    spans = [[times[:0]] * len(SPLITS), *by_blocks(span, len(times))]
    ends = {part: np.concatenate(each) for part, *each in zip(SPLITS, *spans, strict=True)}
    return {part: [int(each.min()), int(each.max())] for part, each in ends.items() if len(each)}


def _together(times: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Return the same for all parts."""
    spans = {part: [each[part] for each in times if part in each] for part in SPLITS}
    return {part: [min(each)[0], max(last for _, last in each)] for part, each in spans.items() if each}
