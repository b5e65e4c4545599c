"""SequenceDataset: every user's items, flat with offsets, and which of them are targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from plr.data.rows import Rows
from plr.prepare.folder import Prepared
from plr.prepare.ids import Ids
from plr.prepare.interactions import user_blocks
from plr.prepare.split import SPLITS

__all__ = ["SequenceDataset"]


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Sequences of U users over V items, N interactions in all.

    The tensors may be mapped from a file: what is not looked at is not read.

    Attributes:
        items: int32 [N], item numbers 0..V-1, user after user, oldest first within a user.
        offsets: int64 [U+1]; user u's items are ``items[offsets[u]:offsets[u + 1]]``.
        roles: uint8 [N], of which split each interaction is a target: 0 of none, 1 train, 2 valid, 3 test.
        training_stop: int64 [U], the flat position after each user's last training interaction.
        users: The external ids of the users.
        vocabulary: The external ids of the items.
        split: "leave-one-out", "leave-k-out", "users" or "time".
        report: What every filter dropped and what is left, ready for JSON.
        content_hash: SHA-256 (hex) of the source files' bytes and the options.
        item_features: The Parquet file whose row i tells about item i (``item_id``, and where known ``title``,
            ``categories``, ``store``, ``text``); None where the data are not of a prepared folder.
    """

    items: Tensor
    offsets: Tensor
    roles: Tensor
    training_stop: Tensor
    users: Ids
    vocabulary: Ids
    split: str
    report: dict
    content_hash: str
    item_features: Path | None = None

    @classmethod
    def of(cls, prepared: Prepared) -> SequenceDataset:
        """Return what was prepared as tensors, which share its arrays."""
        return cls(
            items=torch.from_numpy(np.asarray(prepared.items)),
            offsets=torch.from_numpy(prepared.offsets),
            roles=torch.from_numpy(np.asarray(prepared.roles)),
            training_stop=torch.from_numpy(prepared.training_stop),
            users=Ids(prepared.user_ids),
            vocabulary=Ids(prepared.item_ids),
            split=prepared.split,
            report=prepared.report,
            content_hash=prepared.content_hash,
        )

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.vocabulary)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def user_ids(self) -> pl.Series:
        """The external ids of the users: strings, sorted."""
        return self.users.series

    @property
    def item_ids(self) -> pl.Series:
        """The external ids of the items: strings, sorted."""
        return self.vocabulary.series

    @cached_property
    def targets(self) -> dict[str, Tensor]:
        """{"train", "valid", "test"} to int64 [R], the ascending flat positions of the split's targets."""
        return {split: self.target_positions(split) for split in SPLITS}

    def target_positions(self, split: str) -> Tensor:
        """Return the ascending flat positions of the targets of one split: int64 [R]."""
        return (self.roles == SPLITS.index(split) + 1).nonzero().squeeze(1)

    def rows(self, split: str, max_length: int, kind: str = "prefix", *, min_context: int = 1) -> Rows:
        """Return the rows of ``split``.

        kind "prefix": one row per target; its history is the up to ``max_length`` items directly before it.
        kind "sequence" (training only): windows of up to ``max_length`` consecutive inputs with a target at
        every position. Windows are cut from a user's newest target backwards, so that only the oldest is
        short; together they cover every training target exactly once. Each overlaps the window before it by
        ``min_context`` - 1 inputs, whose targets count there: a target that counts has at least ``min_context``
        inputs before it, or all that the user has. With 1 no windows overlap; with ``max_length`` each target
        beyond a user's oldest window has a window of its own, and the inputs of its prefix row.

        Raises:
            ValueError: for an unknown split or kind, a max_length below 1, a min_context outside
                1..max_length, or kind "sequence" of another split than train.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; found {split!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1; found {max_length}")
        if kind == "prefix":
            return self._prefix_rows(split, max_length)
        if kind != "sequence":
            raise ValueError(f"kind must be 'prefix' or 'sequence'; found {kind!r}")
        if split != "train":
            raise ValueError(f"kind 'sequence' is for training rows; use kind 'prefix' for {split!r}")
        if not 1 <= min_context <= max_length:
            raise ValueError(f"min_context must be in 1..max_length, 1..{max_length}; found {min_context}")
        return self._sequence_rows(max_length, min_context)

    def with_validation_in_training(self) -> SequenceDataset:
        """Return the data set whose training rows are those of training and validation, for a refit before the test."""
        valid = self.target_positions("valid")
        stop = self.training_stop.clone()
        users = torch.searchsorted(self.offsets, valid, right=True) - 1
        stop.scatter_reduce_(0, users, valid + 1, "amax")
        return replace(self, roles=torch.where(self.roles == 2, 1, self.roles), training_stop=stop)

    def target_items(self, split: str) -> Tensor:
        """Return the items that the split's rows ask for: int64 [R]."""
        return self.items[self.targets[split].long()].long()

    def popularity(self) -> Tensor:
        """Return how often each item occurs in training: int64 [V]."""
        items, offsets, stop = self.items.numpy(), self.offsets.numpy(), self.training_stop.numpy()
        count = np.zeros(self.num_items, dtype=np.int64)
        for first, last in user_blocks(offsets):
            inside = np.repeat(stop[first:last] - offsets[first:last], np.diff(offsets[first : last + 1]))
            place = np.arange(offsets[first], offsets[last]) - np.repeat(
                offsets[first:last], np.diff(offsets[first : last + 1])
            )
            part = items[offsets[first] : offsets[last]]
            count += np.bincount(part[place < inside], minlength=self.num_items)
        return torch.from_numpy(count)

    def training_popularity(self, refit: bool) -> Tensor:
        """Return how often each item occurs in what a run was trained on, with validation where it is refit: [V]."""
        return (self.with_validation_in_training() if refit else self).popularity()

    def _prefix_rows(self, split: str, max_length: int) -> Rows:
        """Return the rows, made in blocks of users: what is held for all of them is 6 to 8 bytes a row."""
        roles, offsets = self.roles.numpy(), self.offsets.numpy()
        code = SPLITS.index(split) + 1
        stops, lengths = [], []
        narrow = np.int16 if max_length < 2**15 else np.int64
        wide = np.int32 if len(roles) < 2**31 else np.int64
        for first, last in user_blocks(offsets):
            targets = np.flatnonzero(roles[offsets[first] : offsets[last]] == code) + offsets[first]
            starts = np.repeat(offsets[first:last], np.diff(np.searchsorted(targets, offsets[first : last + 1])))
            stops.append(targets.astype(wide))
            lengths.append(np.minimum(targets - starts, max_length).astype(narrow))
        return Rows(
            self.items,
            torch.from_numpy(_concatenated(stops, wide)),
            torch.from_numpy(_concatenated(lengths, narrow)),
            self.offsets,
            every_position=False,
        )

    def _sequence_rows(self, max_length: int, min_context: int) -> Rows:
        inputs = (self.training_stop - 1 - self.offsets[:-1]).clamp(min=0)  # the last training item is only a target
        stride = max_length - min_context + 1  # the targets that a window adds to those of the older ones
        windows = (inputs > 0) + ((inputs - max_length).clamp(min=0) + stride - 1) // stride
        users = torch.repeat_interleave(torch.arange(self.num_users), windows)
        age = torch.arange(len(users)) - (windows.cumsum(0) - windows)[users]  # 0 = the newest window of the user
        stops = self.training_stop[users] - 1 - age * stride
        starts = torch.maximum(self.offsets[users], stops - max_length)
        oldest = age == windows[users] - 1
        first = torch.where(oldest, starts, stops - stride)  # the first input whose target counts
        trained = self.roles == 1
        is_target = None if int(trained.sum()) == int(inputs.sum()) else trained
        if is_target is not None:
            before = torch.cat([torch.zeros(1, dtype=torch.int64), is_target.cumsum(0)])
            useful = before[stops + 1] > before[first + 1]
            stops, starts, first = stops[useful], starts[useful], first[useful]
        contexts = None if min_context == 1 else first - starts
        return Rows(
            self.items,
            stops,
            stops - starts,
            self.offsets,
            every_position=True,
            is_target=is_target,
            contexts=contexts,
        )


def _concatenated(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
