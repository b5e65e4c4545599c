"""Interaction files -> interactions -> split -> sequences -> batches.

dataset = prepare("ratings.csv", min_rating=4, core=5)
rows = dataset.rows("train", max_length=50)
for index in LengthGroupedBatches(rows.lengths, 256, shuffle=True, seed=0):
    batch = rows.batch(index)
"""

from plr.data.batching import LengthGroupedBatches
from plr.data.dataset import SequenceDataset
from plr.data.errors import DataError
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
