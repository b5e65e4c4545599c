"""Quality by processor time of losses over all items and over sampled ones, for many items and for more.

    OMP_NUM_THREADS=1 python -m bench.loss_quality --data Beauty.txt --minutes 15
    OMP_NUM_THREADS=1 python -m bench.loss_quality --items 100000 --minutes 15
    OMP_NUM_THREADS=1 python -m bench.loss_quality --items 1000000 --minutes 60

SASRec of one block, width 64, dropout 0.2, whole sequences of at most 50 items in shuffled batches of 128, Adam with a
rate of 1e-3, seed 0, leave-one-out. Each loss trains for as much processor time of one thread, and is ranked eight
times on the way: NDCG@10 among all items but the history's, over some validation rows, the same for all losses.
Generated data are those of `plr demo` with more items: rings of 50 items, at most 2,000 of them, and about eight
interactions an item.

Writes bench/results/loss_quality.json, an entry for each data set and loss, after every ranking. A loss whose entry has
all its points is not trained again; one that was interrupted is, from the start.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.conftest import instruction_set
from bench.records import RESULTS, write_record
from bench.training_step import take_step
from plr.config import Config
from plr.data import Batch, SequenceDataset
from plr.evaluation import metrics, rank_rows
from plr.inputs import load_dataset
from plr.models import RecommenderModel, build_model
from plr.prepare.synthetic import generate
from plr.training.module import (
    RowDataset,
    batch_order,
    build_optimizer,
    sample_items,
    step_seed,
    training_rows,
)

LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sampled_softmax, mixed, 1024": {"loss": "sampled_softmax", "sampler": "mixed", "negatives": 1024},
    "gbce, uniform, 256": {"loss": "gbce", "negatives": 256},
}
POINTS = 8
INTERACTIONS_OF_AN_ITEM = 8
MEAN_LENGTH = 18  # of what is generated
RING, MOST_RINGS = 50, 2000  # drawing a user's takes time for each of them


def configuration(data: str, loss: str) -> Config:
    """What is trained."""
    return Config(
        data=data, split="leave-one-out", method="base", dim=64, ffn_dim=256, layers=1, heads=1, input_dropout=0.2,
        hidden_dropout=0.2, attention_dropout=0.2, training_rows="sequence", batch_size=128, **LOSSES[loss],
    )  # fmt: skip


def generated(folder: Path, items: int) -> str:
    """Write interactions with so many items; returns the file's path."""
    path = folder / f"{items}.csv"
    users = items * INTERACTIONS_OF_AN_ITEM // MEAN_LENGTH
    generate(path, users=max(users, 1), items=items, interests=min(max(items // RING, 4), MOST_RINGS))
    return str(path)


class Training:
    """A model in training, and what it has seen.

    Args:
        config: what is trained.
        dataset: on what.
    """

    def __init__(self, config: Config, dataset: SequenceDataset):
        self.config = config
        rows = training_rows(dataset, config)
        self.order = batch_order(rows, config)
        self.rows = RowDataset(rows, self.order, None)
        self.model = build_model(config, dataset.num_items).train()
        sample_items(self.model, config, dataset)
        self.optimizer = build_optimizer(self.model, config)
        self.all_targets = len(dataset.target_positions("train"))
        self.steps = self.targets = 0
        self.seconds = 0.0
        self._batches = self._forever()

    def until(self, seconds: float) -> None:
        """Train on, to so much processor time of all steps together."""
        while self.seconds < seconds:
            start = time.process_time()
            self._step(next(self._batches))
            self.seconds += time.process_time() - start

    def _step(self, batch: Batch) -> None:
        take_step(self.model, self.optimizer, batch, step_seed(self.config.seed, self.steps, 0))
        self.steps += 1
        self.targets += len(batch.each_target)

    def _forever(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            self.order.set_epoch(epoch)
            yield from (self.rows[index] for index in self.order)
            epoch += 1


def ranked(model: RecommenderModel, batches: list[Batch]) -> float:
    """NDCG@10 of the rows of the batches."""
    return metrics(rank_rows(model, batches, exclude_seen=True).ranks, (10,))["ndcg@10"]


def measure(data: str, loss: str, minutes: float, rows: int) -> Iterator[dict[str, Any]]:
    """Train with a loss; yields what is known after every ranking."""
    config = configuration(data, loss)
    dataset = load_dataset(config)
    every = dataset.rows("valid", config.max_length)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:rows].sort().values
    batches = [every.batch(part) for part in chosen.split(128)]
    training = Training(config, dataset)
    points = []
    for number in range(1, POINTS + 1):
        training.until(60 * minutes * number / POINTS)
        epochs = training.targets / training.all_targets
        points.append({"minutes": training.seconds / 60, "epochs": epochs, "ndcg@10": ranked(training.model, batches)})
        yield {
            "items": dataset.num_items, "users": dataset.num_users, "targets_an_epoch": training.all_targets,
            "rows_ranked": len(chosen), "hours_an_epoch": training.seconds / 3600 / epochs,
            "steps": training.steps, "points": points,
        }  # fmt: skip


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a file of interactions or a prepared folder")
    source.add_argument("--items", type=int, help="generate data with about so many items")
    parser.add_argument("--minutes", type=float, required=True, help="processor time of each loss")
    parser.add_argument("--rows", type=int, default=2000, help="validation rows that are ranked")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_quality.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = Path(options.data).name.partition(".")[0] if options.data else f"generated, {options.items:,} items"
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or generated(Path(folder), options.items)
        for loss in options.losses:
            entry = f"{name}: {loss}"
            known = json.loads(options.out.read_text()) if options.out.exists() else {}
            if len(known.get("runs", {}).get(entry, {}).get("points", ())) == POINTS:
                continue
            source = f"--data {Path(options.data).name}" if options.data else f"--items {options.items}"
            command = f"python -m bench.loss_quality {source} --minutes {options.minutes:g} --rows {options.rows}"
            for found in measure(data, loss, options.minutes, options.rows):
                print(entry, {key: round(value, 4) for key, value in found["points"][-1].items()}, flush=True)
                record = {
                    "torch": torch.__version__,
                    "instruction_set": instruction_set(),
                    "runs": known.get("runs", {}) | {entry: {"command": command} | found},
                }
                write_record(options.out, record)


if __name__ == "__main__":
    main()
