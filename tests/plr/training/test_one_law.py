"""Several processes with a share of each batch compute what one process with all of it computes, to rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save

from plr.config import Config
from plr.errors import RunError
from plr.text import embed_text
from plr.training import train
from tests.plr.training.parity import CASES, EPOCHS, RUNS, parent_of

OF_FOUR = ["plr all terms", "plr", "prl sequence", "lares", "cloze", "plr idle", "lares idle", "base sharded",
           "plr sharded", "plr sharded idle", "lares sharded", "cloze sharded idle", "run sharded"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sequences of very different lengths, texts of the items, and what one, two and four processes made of them."""
    folder = tmp_path_factory.mktemp("parity")
    draw = torch.Generator().manual_seed(0)
    lines = []
    for user in range(40):
        length = 4 + int(torch.randint(5, (), generator=draw)) + 24 * (user % 5 == 0)
        items = torch.randint(20, (length,), generator=draw).tolist()
        lines.append(f"u{user} " + " ".join(f"i{item}" for item in items))
    (folder / "data.txt").write_text("\n".join(lines) + "\n")
    (folder / "texts.tsv").write_text("item\ttitle\n" + "".join(f"i{v}\ta{v % 3} b{v % 4} c{v}\n" for v in range(20)))
    embed_text(folder / "texts.tsv", folder / "vectors")
    features = {f"i{v}": {"colour": [str(v % 3), str(v % 5)], "shop": [str(v % 7)] * (v % 4 > 0)} for v in range(20)}
    (folder / "features.json").write_text(json.dumps(features))
    older = [" ".join(word for word in line.split() if word not in ("i3", "i17")) for line in reversed(lines)]
    (folder / "older.txt").write_text("\n".join(older) + "\n")
    train(parent_of(folder))
    groups = json.dumps({1: [*CASES, *RUNS], 2: [*CASES, *RUNS], 4: OF_FOUR})
    program = [sys.executable, "-m", "tests.plr.training.parity", str(folder), groups]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_unfinished_run_of_batches_of_each_device_is_refused(quick, tmp_path):
    (tmp_path / "run").mkdir()
    Config(**quick, devices=2, provenance={"data_hash": "0"}).save(tmp_path / "run" / "config.yaml")
    with pytest.raises(RunError, match="an earlier version of plr on 2 devices, each of which had batches"):
        train(Config(**quick))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_shares_are_that_of_the_batch(name, folder):
    alone = torch.load(folder / f"{name}-1-0.pt", weights_only=True)
    # A gradient is a sum of up to 5e4 products (rows, items, dimensions), whose order adds 5e4 · 2.2e-16 of their
    # sizes; 10 is the room for terms that are larger than their sum.
    scale = max(1.0, *(float(value.abs().max()) for value in alone.values()))
    for count in (2, 4) if name in OF_FOUR else (2,):
        for rank in range(count):
            together = torch.load(folder / f"{name}-{count}-{rank}.pt", weights_only=True)
            assert together.keys() == alone.keys()
            for key, value in alone.items():
                rounding = 1e-10 if value.dtype == torch.float64 else 1e-6  # a reward is float32
                assert (together[key] - value).abs().max() < rounding * scale, f"{key}: {together[key]}, not {value}"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_one_process_began_ends_the_same_in_two(name, folder):
    _assert_same_end(folder / f"{name}-1", folder / f"{name}-2")


def test_a_run_with_a_table_over_two_processes_ends_the_same_in_four(folder):
    _assert_same_end(folder / "run sharded-1", folder / "run sharded-4")


def test_a_run_with_a_table_over_two_processes_ends_the_same_in_one(folder):
    out = folder / "run sharded-back"
    assert [path.name for path in (out / "resume").glob("*items*")] == ["last-items-16.safetensors"]
    train(replace(Config.load(out / "config.yaml"), devices=1, shard_items=False, provenance=None))
    assert not [*(out / "resume").glob("*items*")]
    _assert_same_end(folder / "run sharded-1", out)


def test_a_run_from_another_begun_with_a_table_over_two_processes_ends_the_same_in_one(folder):
    """So does what they began with, rows and moments: of items in another order, some of them new."""
    out = folder / "run from sharded-back"
    train(replace(Config.load(out / "config.yaml"), devices=1, shard_items=False, provenance=None))
    _assert_same_end(folder / "run from sharded-1", out)


def test_weights_of_a_table_over_processes_are_one_file(folder):
    """As safetensors writes a whole model's, to the byte, with numbers that are one process's to rounding."""
    for name in ("model.safetensors", "resume/best.safetensors"):
        alone, together = (folder / f"run sharded-{count}" / name for count in (1, 2))
        weights, expected = load_file(together), load_file(alone)
        assert together.read_bytes() == save(weights)
        assert {key: value.shape for key, value in weights.items()} == {
            key: value.shape for key, value in expected.items()
        }
        # A float32 sum's rounding, of which Adam makes more where a gradient is hardly more than that: 20 steps of .01.
        table = "items.embedding.weight"
        assert (weights[table] - expected[table]).abs().median() < 1e-5


def _assert_same_end(one_process, several):
    """With the losses of every epoch after the second, and the metrics but for what rounding swaps."""
    alone, together = (
        pl.concat(map(pl.read_csv, out.rglob("metrics.csv")), how="diagonal_relaxed")
        .filter(pl.col("epoch") >= EPOCHS // 2)
        for out in (one_process, several)
    )
    # Float32 sums in another order: 1e-6 a step, of which Adam makes more where a gradient is hardly more than that.
    measured = [column for column in alone.columns if column.startswith("train/") and not column.endswith("seconds")]
    for column in measured:
        one, two = (log.sort("epoch")[column].drop_nulls().to_list() for log in (alone, together))
        assert len(one) == len(two) == EPOCHS - EPOCHS // 2, column
        assert two == pytest.approx(one, rel=1e-3), column
    one, two = (json.loads((out / "metrics.json").read_text()) for out in (one_process, several))
    assert two["parameters"] == one["parameters"]
    assert two["epochs"] == one["epochs"] == EPOCHS
    for split in ("valid", "test"):
        assert two[split] == pytest.approx(one[split], abs=1 / 40)  # one row's
