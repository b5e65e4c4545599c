"""RecTools' side of `python -m bench.inference_rectools`: answers of its SASRec, whenever a line asks for them.

Runs in an environment of its own, since RecTools pins other versions than plr (numpy < 2 among them), and imports no
plr; rectools_epoch.py says how to make it. It trains one batch, as only a trained model answers: weights do not change
what an answer costs. Then it prints a line of JSON with its versions, and for each line of its input, a form and a
number of users, one with the processor seconds of a call and how many recommendations that gave.

The model: 2 blocks, 2 heads, feed-forward layers of the width of the model, histories of 50 items, one thread, on the
CPU, every user of a call in one batch. Forms: "recommend" of a data set that is there already, and "construct", with
making the data set of a frame of the histories before.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
import warnings
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LENGTH, K = 50, 10


def frame_of(histories: np.ndarray) -> pd.DataFrame:
    """A row for each interaction of histories [users, length] of item numbers; positions stand in for the times."""
    users, length = histories.shape
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(users), length),
            Columns.Item: [f"item{item}" for item in histories.reshape(-1)],
            Columns.Datetime: pd.to_datetime(np.tile(np.arange(length), users), unit="s"),
            Columns.Weight: 1.0,
        }
    )


def trained(items: int, dim: int, most_users: int) -> SASRecModel:
    """A model that knows all items."""

    def trainer() -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(
            max_epochs=1,
            limit_train_batches=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        loss="softmax",
        n_factors=dim,
        n_blocks=2,
        n_heads=2,
        session_max_len=LENGTH,
        batch_size=2,
        recommend_batch_size=most_users,
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
    )
    numbers = np.arange(-(-items // LENGTH) * LENGTH) % items
    model.fit(Dataset.construct(frame_of(numbers.reshape(-1, LENGTH))))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--users", type=int, nargs="+", required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pytorch_lightning.seed_everything(0)
    model = trained(options.items, options.dim, max(options.users))
    random = np.random.default_rng(0)
    frames = {users: frame_of(random.integers(0, options.items, (users, LENGTH))) for users in options.users}
    datasets = {users: Dataset.construct(frame) for users, frame in frames.items()}

    def answer(form: str, users: int) -> pd.DataFrame:
        dataset = datasets[users] if form == "recommend" else Dataset.construct(frames[users])
        return model.recommend(users=np.arange(users), dataset=dataset, k=K, filter_viewed=False)

    versions = {name: version(name) for name in ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")}
    print(json.dumps({"python": platform.python_version(), **versions}), flush=True)
    for line in sys.stdin:
        form, users = line.split()
        begin = time.process_time()
        found = answer(form, int(users))
        seconds = time.process_time() - begin
        print(json.dumps({"seconds": seconds, "rows": len(found)}), flush=True)


if __name__ == "__main__":
    main()
