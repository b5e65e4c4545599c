"""The public Beauty file: known counts; and the same numbers whatever Python's hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plr.data import LengthGroupedBatches, prepare

ROOT = Path(__file__).parents[3]
BEAUTY = ROOT.parent / "shared" / "data" / "Beauty.txt"

FINGERPRINT = """
import hashlib, sys
from plr.data import prepare
dataset = prepare(sys.argv[1])
parts = [dataset.items.numpy().tobytes(), dataset.offsets.numpy().tobytes()]
parts += [",".join(ids).encode() for ids in (dataset.item_ids, dataset.user_ids)]
print(hashlib.sha256(b"".join(parts)).hexdigest(), dataset.content_hash)
"""


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


def test_ids_do_not_depend_on_the_hash_seed(write):
    digits = (hashlib.sha256(b"%d" % n).hexdigest()[:8] for n in range(3000))
    path = write("data.txt", "".join(" ".join(ids) + "\n" for ids in zip(*[digits] * 6, strict=True)))
    printed = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, path],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(printed) == 1
