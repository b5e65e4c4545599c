"""SequenceDataset: every user's items, flat with offsets, and which of them are targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl
import torch
from torch import Tensor

from plr.data.errors import DataError
from plr.data.rows import Rows

__all__ = ["SequenceDataset"]


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Sequences of U users over V items, N interactions in all.

    Attributes:
        items: int64 [N], item numbers 0..V-1, user after user, oldest first within a user.
        offsets: int64 [U+1]; user u's items are ``items[offsets[u]:offsets[u + 1]]``.
        targets: {"train", "valid", "test"} to int64 [R], the ascending flat positions of the split's targets.
        training_stop: int64 [U], the flat position after each user's last training interaction.
        user_ids: The external ids of the users (strings, sorted).
        item_ids: The external ids of the items (strings, sorted).
        split: "leave-one-out" or "time".
        report: What every filter dropped and what is left, ready for JSON.
        content_hash: SHA-256 (hex) of the source file's bytes and the options.
    """

    items: Tensor
    offsets: Tensor
    targets: dict[str, Tensor]
    training_stop: Tensor
    user_ids: pl.Series
    item_ids: pl.Series
    split: str
    report: dict
    content_hash: str

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    def rows(self, split: str, max_length: int, kind: str = "prefix") -> Rows:
        """Return the rows of ``split``.

        kind "prefix": one row per target; its history is the up to ``max_length`` items directly before it.
        kind "sequence" (training only): windows of up to ``max_length`` consecutive inputs with a target at
        every position. Windows are cut from a user's newest target backwards, so that only the oldest is
        short; together they cover every training target exactly once.

        Raises:
            ValueError: for an unknown split or kind, a max_length below 1, or kind "sequence" of another
                split than train.
        """
        if split not in self.targets:
            raise ValueError(f"split must be one of {', '.join(self.targets)}; got {split!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1; got {max_length}")
        if kind == "prefix":
            return self._prefix_rows(self.targets[split], max_length)
        if kind != "sequence":
            raise ValueError(f"kind must be 'prefix' or 'sequence'; got {kind!r}")
        if split != "train":
            raise ValueError(f"kind 'sequence' is for training rows; use kind 'prefix' for {split!r}")
        return self._sequence_rows(max_length)

    def with_validation_in_training(self) -> SequenceDataset:
        """Return the data set whose training rows are those of training and validation, for a refit before the test."""
        valid = self.targets["valid"]
        stop = self.training_stop.clone()
        stop.scatter_reduce_(0, self._user_of(valid), valid + 1, "amax")
        train = torch.cat([self.targets["train"], valid]).sort().values
        return replace(self, targets={**self.targets, "train": train}, training_stop=stop)

    def item_index(self, external_ids: Iterable[str], *, history: int | str | None = None) -> Tensor:
        """Return the numbers (int64 [n]) of the items with these external ids.

        Raises:
            DataError: naming the first id that is unknown, its place, and ``history`` where the caller
                gives one (its number or its user, say).
        """
        if isinstance(external_ids, str):
            raise TypeError(f"external_ids must be a list of ids, not one string: {external_ids!r}")
        external_ids = [str(external_id) for external_id in external_ids]
        try:
            return torch.tensor([self._number_of[external_id] for external_id in external_ids], dtype=torch.int64)
        except KeyError as error:
            (unknown,) = error.args
            where = "" if history is None else f" of history {history!r}"
            raise DataError(
                f"unknown item {unknown!r} (number {external_ids.index(unknown) + 1}{where}): "
                f"it is not one of the {self.num_items} items of the training data"
            ) from None

    def popularity(self) -> Tensor:
        """Return how often each item occurs in training: int64 [V]."""
        starts = torch.zeros(len(self.items) + 1, dtype=torch.int64)
        starts.index_add_(0, self.offsets[:-1], torch.ones_like(self.training_stop))
        starts.index_add_(0, self.training_stop, -torch.ones_like(self.training_stop))
        in_training = starts.cumsum(0)[:-1] > 0
        return torch.bincount(self.items[in_training], minlength=self.num_items)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {external_id: number for number, external_id in enumerate(self.item_ids)}

    def _user_of(self, positions: Tensor) -> Tensor:
        return torch.searchsorted(self.offsets, positions, right=True) - 1

    def _prefix_rows(self, targets: Tensor, max_length: int) -> Rows:
        users = self._user_of(targets)
        starts = torch.maximum(self.offsets[users], targets - max_length)
        return Rows(self.items, starts, targets - starts, users, every_position=False)

    def _sequence_rows(self, max_length: int) -> Rows:
        inputs = (self.training_stop - 1 - self.offsets[:-1]).clamp(min=0)  # the last training item is only a target
        windows = (inputs + max_length - 1) // max_length
        users = torch.repeat_interleave(torch.arange(self.num_users), windows)
        age = torch.arange(len(users)) - (windows.cumsum(0) - windows)[users]  # 0 = the newest window of the user
        stops = self.training_stop[users] - 1 - age * max_length
        starts = torch.maximum(self.offsets[users], stops - max_length)
        return Rows(self.items, starts, stops - starts, users, every_position=True)
