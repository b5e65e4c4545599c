"""A data set in the item numbers of another one: what a trained model can be measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch

from plr.data.dataset import SequenceDataset
from plr.errors import DataError
from plr.prepare.ids import Ids
from plr.prepare.split import SPLITS

__all__ = ["renumber"]


def renumber(dataset: SequenceDataset, item_ids: Sequence[str]) -> SequenceDataset:
    """Return the data set with item numbers 0..V-1 meaning `item_ids`.

    Interactions with items that are not among them are left out of the histories. Rows whose target is such an item, or
    whose history becomes empty, are dropped. The report's "unknown_items" counts both.

    Raises:
        DataError: none of the data set's items is known.
    """
    number_of = {item_id: number for number, item_id in enumerate(item_ids)}
    numbers = torch.tensor([number_of.get(item_id, -1) for item_id in dataset.item_ids], dtype=torch.int32)
    if not bool((numbers >= 0).any()):
        raise DataError(f"none of the {dataset.num_items} items of these data is known to the model")
    items = numbers[dataset.items]
    known = items >= 0
    # before[p] = how many known interactions stand before flat position p: the new position of what stood at p.
    before = torch.cat([torch.zeros(1, dtype=torch.int64), known.cumsum(0)])
    offsets = before[dataset.offsets]
    roles = dataset.roles[known]
    roles[offsets[:-1][offsets[:-1] < offsets[1:]]] = 0  # nothing is left before them
    report = dict(dataset.report)
    rows = {split: int((roles == code).sum()) for code, split in enumerate(SPLITS, start=1)}
    report["unknown_items"] = {
        "interactions": int((~known).sum()),
        "rows": {split: int((dataset.roles == code).sum()) - rows[split] for code, split in enumerate(SPLITS, start=1)},
    }
    report["rows"] = rows
    return replace(
        dataset,
        items=items[known],
        offsets=offsets,
        roles=roles,
        training_stop=before[dataset.training_stop],
        vocabulary=Ids(pl.Series("item_id", item_ids, dtype=pl.String)),
        report=report,
        item_features=None,
    )
