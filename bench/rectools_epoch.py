"""Seconds per training epoch, and test metrics, of RecTools' SASRec, and of its `fast_transformers`.

The peer of `plr train --backbone sasrec --method base`. Runs in an environment of its own, since RecTools
pins other versions than plr (numpy < 2 among them), and imports no plr. On a machine without a GPU say
torch==2.13.0+cpu:

    python -m venv rectools-env
    rectools-env/bin/pip install torch==2.13.0 'rectools[torch]==0.19.0'
    rectools-env/bin/python bench/rectools_epoch.py --data Beauty.txt --epochs 1
    rectools-env/bin/python bench/rectools_epoch.py --data Beauty.txt --epochs 15 --evaluate

The data file has a line per user: user item item ..., in time order. The last two items of each user are
held out of training. The measured model: softmax loss over all items at all positions, 64 factors, 2
blocks, 2 heads, dropout 0.5, sequences of 50, batches of 128 users, Adam at 1e-3.

--model flat trains FlatSASRecNet, from `rectools.fast_transformers`, at the same sizes and on its own
`build_sequences` and `SequenceBatchDataset`. RecTools has no trainer for it: the loop here is what its UniSRecModel
does, softmax over all items at every position, padded ones ignored. flat-targets takes the net's states where a target
counts and computes logits for those alone, which RecTools does nowhere.

Prints one line of JSON. `epoch_seconds` holds the wall time of every epoch, from the first batch asked of
the data loader to the end of the last step: reading, building the data set, and evaluation are outside. For
a comparison, run it with --epochs 1 in turn with the other system and compare within each pair, since
speeds drift on shared machines; nothing else should be running.

The logits of a step are hundreds of megabytes, which glibc's allocator by default returns to the system after
every use and takes again, page fault by page fault. --keep-memory makes it keep them, at the price of more
resident memory; give both systems the same.

With --evaluate: each user's last item is ranked after a history that includes the second last, among all
items RecTools knows, seen ones included; rank = 1 + #greater + #equal others / 2. RecTools knows the items
of its training data only, so a last item that never occurs there, and a user without any known item, count
as misses.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.fast_transformers import FlatSASRecNet
from rectools.fast_transformers.preprocessing.sequence_data import SequenceBatchDataset, build_sequences
from rectools.models import SASRecModel
from torch.nn import functional
from torch.utils.data import DataLoader


class EpochTimer(pytorch_lightning.Callback):
    """Wall time of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_train_epoch_start(self, trainer: pytorch_lightning.Trainer, *_: object) -> None:
        self.start = now(trainer)

    def on_train_epoch_end(self, trainer: pytorch_lightning.Trainer, *_: object) -> None:
        self.seconds.append(now(trainer) - self.start)


def now(trainer: pytorch_lightning.Trainer) -> float:
    """Return the time after all work given to the device is done."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory: M_MMAP_MAX (-4) = 0, M_TRIM_THRESHOLD (-1) = -1; mallopt(3)."""
    libc = ctypes.CDLL(None)
    for parameter, value in ((-4, 0), (-1, -1)):
        if not libc.mallopt(parameter, value):
            raise OSError(f"mallopt refused parameter {parameter}")


def read_histories(path: Path) -> dict[str, list[str]]:
    """Return {user: items in time order} of a file with a line `user item item ...` per user."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: words[1:] for words in lines if words}


def build_dataset(histories: dict[str, list[str]]) -> Dataset:
    """Return the RecTools data set of these histories; positions stand in for the times."""
    rows = [(user, item, position) for user, items in histories.items() for position, item in enumerate(items)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    frame[Columns.Weight] = 1.0
    return Dataset.construct(frame)


def build_model(epochs: int, workers: int, limit_batches: int | None) -> SASRecModel:
    """Return the measured model, not yet trained."""

    def trainer() -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(
            max_epochs=epochs,
            min_epochs=epochs,
            limit_train_batches=limit_batches,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[EpochTimer()],
        )

    return SASRecModel(
        loss="softmax",
        n_factors=64,
        n_blocks=2,
        n_heads=2,
        dropout_rate=0.5,
        session_max_len=50,
        batch_size=128,
        lr=1e-3,
        dataloader_num_workers=workers,
        get_trainer_func=trainer,
    )


def flat_epochs(
    histories: dict[str, list[str]], epochs: int, workers: int, limit_batches: int | None, *, targets_only: bool
) -> tuple[list[float], int]:
    """Train FlatSASRecNet; return the seconds of each epoch, and how many batches one has."""
    distinct = sorted({item for items in histories.values() for item in items})
    number = {item: place for place, item in enumerate(distinct)}
    rows = [(user, number[item]) for user, items in enumerate(histories.values()) for item in items]
    users, items = torch.tensor(rows).T
    x, y, known, _ = build_sequences(users, items, torch.arange(len(rows)), max_len=50)
    net = FlatSASRecNet(len(known), n_factors=64, n_blocks=2, n_heads=2, session_max_len=50, dropout=0.5).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(SequenceBatchDataset(x, y), batch_size=128, shuffle=True, num_workers=workers)
    seconds, batches = [], len(loader) if limit_batches is None else min(len(loader), limit_batches)
    for _ in range(epochs):
        start = time.perf_counter()
        for _, batch in zip(range(batches), loader, strict=False):
            optimizer.zero_grad()
            labels = batch["y"].flatten() - 1  # -1 where padded
            if targets_only:
                states = net.encode(batch["x"]).flatten(0, 1)[labels >= 0]
                loss = functional.cross_entropy(states @ net.all_item_embeddings().T, labels[labels >= 0])
            else:
                loss = functional.cross_entropy(net(batch).flatten(0, 1), labels, ignore_index=-1)
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds, batches


def last_item_ranks(model: SASRecModel, histories: dict[str, list[str]]) -> np.ndarray:
    """Return the rank of each user's last item after the items before it; infinite if not rankable."""
    known = {item: number for number, item in enumerate(model.data_preparator.get_known_item_ids())}
    dataset = model.data_preparator.transform_dataset_u2i(
        build_dataset({user: items[:-1] for user, items in histories.items()}), list(histories)
    )
    loader = model.data_preparator.get_dataloader_recommend(dataset, batch_size=256)
    states, items = model.lightning_model._get_user_item_embeddings(loader, None)
    states, items = states.cpu(), items[model.data_preparator.n_item_extra_tokens :].detach().cpu()
    ranks = np.full(len(histories), np.inf)
    rankable = [
        (row, known[histories[user][-1]])
        for row, user in enumerate(dataset.user_id_map.external_ids)
        if histories[user][-1] in known
    ]
    for pairs in torch.tensor(rankable).split(256):
        scores = states[pairs[:, 0]] @ items.T
        own = scores.gather(1, pairs[:, 1:])
        ranks[pairs[:, 0]] = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a line `user item item ...` per user")
    parser.add_argument("--model", choices=["sasrec", "flat", "flat-targets"], default="sasrec")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="add the test HR@10 and NDCG@10; of sasrec alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch's operators")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the data loader")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory (Linux with glibc)")
    parser.add_argument("--limit-batches", type=int, help="end epochs early: to try the script")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.evaluate and arguments.model != "sasrec":
        parser.error("--evaluate: of --model sasrec alone")

    if arguments.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    pytorch_lightning.seed_everything(arguments.seed)
    histories = read_histories(arguments.data)
    histories = {user: items for user, items in histories.items() if len(items) >= 3}
    train = {user: items[:-2] for user, items in histories.items()}
    device = torch.device("cpu")
    if arguments.model == "sasrec":
        model = build_model(arguments.epochs, arguments.workers, arguments.limit_batches)
        model.fit(build_dataset(train))
        (timer,) = (callback for callback in model.fit_trainer.callbacks if isinstance(callback, EpochTimer))
        device = model.fit_trainer.strategy.root_device
        epoch_seconds, batches = timer.seconds, int(model.fit_trainer.num_training_batches)
    else:
        epoch_seconds, batches = flat_epochs(
            train,
            arguments.epochs,
            arguments.workers,
            arguments.limit_batches,
            targets_only=arguments.model == "flat-targets",
        )
    result = {
        "system": "rectools",
        "model": arguments.model,
        "epoch_seconds": [round(seconds, 3) for seconds in epoch_seconds],
        "median_epoch_seconds": round(float(np.median(epoch_seconds)), 3),
        "batches_per_epoch": batches,
        "users": len(histories),
        "seed": arguments.seed,
        "threads": arguments.threads,
        "workers": arguments.workers,
        "keep_memory": arguments.keep_memory,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("rectools", "torch", "pytorch-lightning", "numpy")},
    }
    if arguments.evaluate:
        ranks = last_item_ranks(model, histories)
        result["test"] = {
            "n": len(ranks),
            "hr@10": float((ranks <= 10).mean()),
            "ndcg@10": float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()),
            "unrankable": int(np.isinf(ranks).sum()),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
