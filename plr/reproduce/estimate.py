"""How long a run will take, from two steps of it."""

from __future__ import annotations

import itertools
import time

import torch

from plr.config import Config
from plr.data import LengthGroupedBatches, SameTargetPositives, SequenceDataset
from plr.inputs import load_item_data
from plr.models import build_model
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.runs import RunFolder
from plr.training.module import RowDataset, batch_order, build_optimizer, sample_items, training_rows

__all__ = ["seconds_of_run"]

_SIZES = (16, 128)
_FORWARD = 1 / 3  # of a training step: the ranking of a validation row


def seconds_of_run(config: Config, dataset: SequenceDataset, folder: RunFolder) -> float:
    """Return about how many seconds the run takes if it is not stopped early.

    Steps of two small sizes are timed, and what a row takes is extrapolated to the whole batch: a figure to plan
    by, within a factor of two or so.
    """
    device = "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    item_data = load_item_data(config, dataset.item_ids, folder.item_data)
    model = build_model(config, item_data).to(device)
    if isinstance(model, PostTrainedLARES):
        # Drawn weights cost what those of the first phase do; which rows that will leave out is not known yet.
        model.start_from(build_model(config, item_data).to(device))  # type: ignore[arg-type]
    sample_items(model, config, dataset)
    rows = training_rows(dataset, config)
    positives = SameTargetPositives(rows, config.seed) if model.same_target_positives else None  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config)
    times = []
    for size in (min(each, config.batch_size) for each in _SIZES):
        order = LengthGroupedBatches(rows.lengths, size, shuffle=True, grouped=False)
        batches, seconds = RowDataset(rows, order, positives), []
        for index in itertools.islice(order, 3):
            batch = batches[index].to(device)
            start = time.perf_counter()
            optimizer.zero_grad()
            torch.stack(list(model.losses(batch).values())).sum().backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        times.append((size, min(seconds)))
    (few, short), (many, long) = times
    by_row = max(long - short, 0.0) / max(many - few, 1) or long / many
    by_step = max(long - many * by_row, 0.0)
    steps = len(batch_order(rows, config))
    validation = len(dataset.target_positions("valid")) * by_row * _FORWARD
    return config.epochs * (steps * by_step + len(rows) * by_row + validation)
