"""A sample of users as a prepared folder: what a quick reproduction trains on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from plr.config import Config
from plr.errors import DataError
from plr.inputs import load_dataset
from plr.prepare.folder import Prepared, is_prepared, read_manifest, save_prepared
from plr.prepare.split import SPLITS

__all__ = ["sampled"]


def sampled(config: Config, interactions: int, folder: Path) -> Path:
    """Write the sequences of some users as a prepared folder; one that holds the same sample stays.

    Users are drawn at random until they have so many interactions. Items that none of them has are left out.

    Args:
        config: names the data.
        interactions: about how many.
        folder: where to.

    Returns:
        The folder.

    Raises:
        DataError: the folder is not empty and holds something else.
    """
    dataset = load_dataset(config)
    content_hash = hashlib.sha256(f"{dataset.content_hash} sample {interactions}".encode()).hexdigest()
    if is_prepared(folder):
        if read_manifest(folder)["content_hash"] == content_hash:
            return folder
        raise DataError("holds a sample of other data, or of another size; choose another --out", folder)
    offsets, items = dataset.offsets.numpy(), dataset.items.numpy()
    lengths = np.diff(offsets)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(lengths))
    enough = int(np.searchsorted(np.cumsum(lengths[order]), interactions)) + 1
    users = np.sort(order[:enough])

    places = np.concatenate([np.arange(offsets[user], offsets[user + 1]) for user in users])
    kept, numbers = np.unique(items[places], return_inverse=True)
    new_offsets = np.concatenate([[0], np.cumsum(lengths[users])]).astype(offsets.dtype)
    roles = dataset.roles.numpy()[places]
    training = dataset.training_stop.numpy()[users] - offsets[users] + new_offsets[:-1]
    sizes = {"users": len(users), "items": len(kept), "interactions": len(places)}
    rows = {split: int((roles == number).sum()) for number, split in enumerate(SPLITS, start=1)}
    prepared = Prepared(
        items=numbers.astype(items.dtype),
        offsets=new_offsets,
        roles=roles,
        training_stop=training.astype(offsets.dtype),
        user_ids=dataset.user_ids.gather(pl.Series(users)),
        item_ids=dataset.item_ids.gather(pl.Series(kept)),
        split=dataset.split,
        report={
            **dataset.report,
            **sizes,
            "filtered": sizes,
            "filters": [
                *dataset.report["filters"],
                {
                    "filter": "sample",
                    "value": interactions,
                    "dropped": {name: dataset.report[name] - size for name, size in sizes.items()},
                },
            ],
            "rows": rows,
        },
        content_hash=content_hash,
    )
    save_prepared(prepared, folder, replace=False)
    return folder
