"""Sequence rows that have a few of their targets at a time: dealt at random, in each epoch anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from plr.data.rows import IGNORED, Batch, CountedTargets, Rows

__all__ = ["DealtRows"]


class DealtRows:
    """Rows with at most K of a sequence's targets each; together, in every epoch, they have every target once.

    A sequence of n targets becomes P = ⌈n/K⌉ rows. In each epoch its targets are shuffled, and the i-th goes to row
    i mod P: the rows of a sequence have ⌊n/P⌋ or ⌈n/P⌉ targets. A row ends with the input before its last target, for
    what follows is read by none of them (the encoder being causal). K = 1 gives rows of prefixes.

    Where a target goes is a function of (seed, epoch, the target), not of the batch it is in.

    Args:
        rows: R sequences with a target at every position.
        targets_per_row: K, at least 1.
        seed: of the dealing.

    Raises:
        ValueError: the rows have one target each, or K is below 1.
    """

    def __init__(self, rows: Rows, targets_per_row: int, seed: int) -> None:
        if not rows.every_position:
            raise ValueError("targets are dealt from rows with a target at every position; these have one target each")
        if targets_per_row < 1:
            raise ValueError(f"targets_per_row must be at least 1; found {targets_per_row}")
        self.seed = seed
        self._rows = rows
        parts = -(-rows.target_counts() // targets_per_row)  # [R]
        self._sequence = torch.repeat_interleave(torch.arange(len(rows)), parts)  # [R'], whose targets a row has
        self._parts = parts
        self._first = parts.cumsum(0) - parts  # [R], the first row of a sequence
        self.lengths = rows.lengths[self._sequence]

    def __len__(self) -> int:
        return len(self._sequence)

    def target_counts(self) -> Tensor:
        """Return how many targets each row has, in every epoch: int64 [R']."""
        counts, parts = self._rows.target_counts()[self._sequence], self._parts[self._sequence]
        own = torch.arange(len(self)) - self._first[self._sequence]
        return counts // parts + (own < counts % parts)

    def batch(self, index: Tensor, epoch: int) -> Batch:
        """Gather the rows `index` (int64 [B], any order, repeats allowed) of an epoch, padded to the longest."""
        sequence = self._sequence[index]
        whole = self._rows.batch(sequence)
        if not len(index):
            return whole
        counted = whole.targets != IGNORED  # [B, L]
        place = torch.arange(counted.shape[1])
        keys = self._keys(self._rows.starts_of(sequence)[:, None] + place, epoch)
        keys = keys.masked_fill_(~counted, torch.iinfo(torch.int64).max)
        rank = torch.empty_like(keys).scatter_(1, keys.argsort(dim=1), place.expand_as(keys))
        own = (index - self._first[sequence])[:, None]
        dealt = counted & (rank % self._parts[sequence][:, None] == own)
        lengths = (dealt * (place + 1)).amax(dim=1)
        longest = int(lengths.max())
        targets = whole.targets.masked_fill(~dealt, IGNORED)[:, :longest]
        item_ids = whole.item_ids[:, :longest].masked_fill(place[:longest] >= lengths[:, None], 0)
        return replace(
            whole, item_ids=item_ids, lengths=lengths, targets=targets, counted=CountedTargets.of(targets)
        )

    def _keys(self, positions: Tensor, epoch: int) -> Tensor:
        """Random numbers, int64 below 2^63 - 1, that belong to flat positions (any shape) in an epoch."""
        (stream,) = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        # splitmix64: neighbouring counters give unrelated numbers.
        state = positions.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + stream
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return torch.from_numpy((state >> np.uint64(2)).astype(np.int64))
