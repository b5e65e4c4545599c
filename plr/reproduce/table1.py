"""Table 1: the statistics of the data."""

from __future__ import annotations

import numpy as np

from plr.prepare.amazon import TABLE_1
from plr.prepare.split import SPLITS
from plr.reproduce.results import Section, Table
from plr.reproduce.study import Run, Study


def needs(study: Study) -> list[Run]:
    """Return no run."""
    return []


def section(study: Study) -> Section:
    """Return the statistics beside the paper's, and the rows of each split."""
    dataset = study.dataset
    users, items, interactions = dataset.num_users, dataset.num_items, len(dataset.items)
    lengths = np.diff(dataset.offsets.numpy())
    # A user's repeats of an item are one cell of the matrix that sparsity is of.
    pairs = len(np.unique(np.repeat(np.arange(users), lengths) * items + dataset.items.numpy()))
    sizes = {"these data": {"users": users, "items": items, "interactions": interactions, "pairs": pairs}}
    for name, size in TABLE_1.items():
        sizes[f"paper: {name.replace('_', ' ')}"] = {**size, "pairs": size["interactions"]}
    statistics = Table(
        "table1",
        "Statistics, and those of the paper's three data sets",
        ["data", "users", "items", "interactions", "sparsity"],
        [
            [
                name,
                size["users"],
                size["items"],
                size["interactions"],
                f"{1 - size['pairs'] / (size['users'] * size['items']):.2%}",
            ]
            for name, size in sizes.items()
        ],
        "Sparsity: the share of pairs of a user and an item without an interaction; repeats count once.",
    )
    popularity = dataset.popularity()
    counts = np.sort(popularity.numpy())[::-1]
    most = max(1, items // 100)
    head = counts[:most].sum() / max(counts.sum(), 1)
    targets = {split: dataset.target_items(split) for split in SPLITS}
    rows = Table(
        "table1-rows",
        f"Rows of the {dataset.split} split",
        ["split", "rows", "of items that training does not have"],
        [[split, len(each), int((popularity[each] == 0).sum())] for split, each in targets.items()],
        f"A user has {np.median(lengths):g} interactions in the median, {lengths.mean():.1f} in the mean and "
        f"{lengths.max()} at most; the most popular {100 * most / items:.2g} % of the items ({most:,}) have "
        f"{100 * head:.0f} % of the training interactions. Rows whose target has no training interaction can hardly "
        "be ranked right. The time split leaves them out, but a sample of its users has some again, for want of the "
        "other users' interactions.",
    )
    return Section("table1", "Table 1: data", [statistics, rows])
