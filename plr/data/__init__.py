"""The prepared folder as tensors: sequences, rows, batches.

dataset = prepare("ratings.csv", min_rating=4, core=5)
rows = dataset.rows("train", max_length=50)
for index in LengthGroupedBatches(rows.lengths, 256, shuffle=True, seed=0):
    batch = rows.batch(index)
"""

from plr.data.batching import LengthGroupedBatches
from plr.data.dataset import SequenceDataset
from plr.data.dealt import DealtRows
from plr.data.opened import open_prepared, prepare
from plr.data.positives import SameTargetPositives
from plr.data.rows import Batch, CountedTargets, Rows
from plr.data.share import Share
from plr.errors import DataError
from plr.prepare.options import PrepareOptions

__all__ = [
    "Batch",
    "CountedTargets",
    "DataError",
    "DealtRows",
    "LengthGroupedBatches",
    "PrepareOptions",
    "Rows",
    "SameTargetPositives",
    "SequenceDataset",
    "Share",
    "open_prepared",
    "prepare",
]
