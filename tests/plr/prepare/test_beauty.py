"""The public Beauty file: known counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from plr.data import LengthGroupedBatches, prepare

ROOT = Path(__file__).parents[3]
BEAUTY = ROOT.parent / "shared" / "data" / "Beauty.txt"


@pytest.mark.skipif(not BEAUTY.exists(), reason=f"{BEAUTY} is absent")
def test_beauty():
    dataset = prepare(BEAUTY)
    assert (dataset.num_users, dataset.num_items, len(dataset.items)) == (22_363, 12_101, 198_502)
    assert dataset.report["rows"] == {"train": 131_413, "valid": 22_363, "test": 22_363}
    assert (dataset.split, dataset.report["format"]) == ("leave-one-out", "sequences")
    assert int(dataset.popularity().sum()) == 198_502 - 2 * 22_363
    lines = dict(line.split(" ", 1) for line in BEAUTY.read_text().splitlines())
    for user in (0, 4711, 22_362):
        items = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        assert " ".join(dataset.item_ids[item] for item in items) == lines[dataset.user_ids[user]]
    rows = dataset.rows("train", 50)
    cells = 0
    for index in LengthGroupedBatches(rows.lengths, 256, shuffle=True):
        cells += rows.batch(index).item_ids.numel()
    assert 1 - int(rows.lengths.sum()) / cells < 0.08
