"""Interaction files -> interactions -> split -> sequences -> batches.

dataset = prepare("ratings.csv", min_rating=4, core=5)
rows = dataset.rows("train", max_length=50)
for index in LengthGroupedBatches(rows.lengths, 256, shuffle=True, seed=0):
    batch = rows.batch(index)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plr.data.errors import DataError

if TYPE_CHECKING:
    from plr.data.batching import LengthGroupedBatches
    from plr.data.dataset import SequenceDataset
    from plr.data.options import PrepareOptions
    from plr.data.partners import SameTargetPartners
    from plr.data.pipeline import prepare, prepare_folder
    from plr.data.prepared import open_prepared
    from plr.data.rows import Batch, Rows

__all__ = [
    "Batch",
    "DataError",
    "LengthGroupedBatches",
    "PrepareOptions",
    "Rows",
    "SameTargetPartners",
    "SequenceDataset",
    "open_prepared",
    "prepare",
    "prepare_folder",
]

_MODULES = {
    "Batch": "rows",
    "LengthGroupedBatches": "batching",
    "PrepareOptions": "options",
    "Rows": "rows",
    "SameTargetPartners": "partners",
    "SequenceDataset": "dataset",
    "open_prepared": "prepared",
    "prepare": "pipeline",
    "prepare_folder": "pipeline",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: a folder is prepared without PyTorch, whose import takes as long as a million interactions.
    if name in _MODULES:
        return getattr(import_module(f"plr.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'plr.data' has no attribute {name!r}")
