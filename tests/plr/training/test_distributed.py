"""Two processes on CPUs, as `plr train --devices 2` and torchrun start them."""

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
import threading

import polars as pl
import pytest
import torch

from plr.data import prepare
from plr.errors import EvaluationError, RunError
from plr.evaluation import evaluation_batches, load_ranking, rank_rows
from plr.runs import RunFolder
from plr.serving import Recommender
from plr.training import shared_ranking

BY_TORCHRUN = ("plr", "lares", "plr --training_rows sequence --targets_per_row 2")


def arguments(method, data, out, progress="false"):
    return [
        "train", "--data", str(data), "--out", str(out), "--devices", "2",
        "--method", *method.split(), "--accelerator", "cpu", "--dim", "16", "--ffn_dim", "16", "--batch_size", "64",
        "--epochs", "3", "--refit", "true", "--lr", "0.01", "--progress", progress, "--threads", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def by_torchrun(small_data, tmp_path_factory):
    """The folder of each method's run by two processes that torchrun would have started."""
    folder = tmp_path_factory.mktemp("torchrun")
    outs = {method: folder / str(number) for number, method in enumerate(BY_TORCHRUN)}
    commands = json.dumps([arguments(method, small_data, out) for method, out in outs.items()])
    program = [sys.executable, "-m", "tests.plr.training.processes", commands]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return outs


@pytest.mark.parametrize("method", BY_TORCHRUN)
def test_two_processes_train_one_run(method, by_torchrun, small_data):
    check_run(by_torchrun[method], small_data)


def test_the_command_starts_two_processes_that_train_one_run(small_data, tmp_path):
    out = tmp_path / "run"
    method = "plr --shard_items true --exclude_seen true"
    command = [sys.executable, "-m", "plr", *arguments(method, small_data, out, progress="true")]
    # On a terminal: with a progress bar, which the first process alone has.
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # of no width the bar is not drawn
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True) as running:
        os.close(theirs)
        shown = threading.Thread(target=read_all, args=(ours, printed := bytearray()))
        shown.start()
        try:
            _, errors = running.communicate(timeout=300)
        finally:
            running.kill()  # if it hangs; the other process ends with it
        shown.join()
    assert running.returncode == 0, errors
    assert b"Epoch 2" in printed
    check_run(out, small_data)


def test_shared_items_are_measured_where_no_epoch_is_left(small_data, tmp_path):
    """Of a run killed between its last epoch and its metrics, and not refitted, the first process is alone."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "plr", *arguments("base --shard_items true", small_data, out), "--refit", "false"]
    written = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        metrics = json.loads((out / "metrics.json").read_text())
        weights = (out / "model.safetensors").read_bytes()
        written.append(({name: metrics[name] for name in ("epochs", "valid", "test")}, weights))
        (out / "metrics.json").unlink()
        (out / "model.safetensors").unlink()
    assert written[0] == written[1]


def read_all(terminal, printed):
    """Append what is printed on a terminal until nobody has it any more."""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as file:
        while block := file.read(4096):
            printed += block


def check_run(out, small_data):
    result = json.loads((out / "metrics.json").read_text())
    assert result["test"]["rows"] == 60
    # The metrics of an epoch are over the rows of both processes, hence those of the saved weights over all rows.
    logged = pl.read_csv(next(out.glob("logs/csv/*/metrics.csv")))
    assert abs(logged["ndcg@10"].max() - result["valid"]["ndcg@10"]) < 1e-9
    # All ranked all rows together, the result that of one.
    recommender = Recommender.load(out)
    rows = prepare(small_data).rows("test", recommender.config.max_length)
    batches = evaluation_batches(rows, recommender.config.eval_batch_size, "cpu")
    alone = rank_rows(recommender.model, batches, exclude_seen=recommender.config.exclude_seen)
    together = load_ranking(RunFolder(out).ranks("test"))
    for name in ("users", "targets", "ranks"):
        assert torch.equal(getattr(alone, name), getattr(together, name)), name


@pytest.mark.parametrize("batch_size", [3, 7, 100])
@pytest.mark.parametrize("count", [2, 3])
def test_shares_together_are_all_rows_in_the_order_of_one_process(small_data, monkeypatch, batch_size, count):
    rows = prepare(small_data).rows("test", 5)

    def ranked(model, batches, *, exclude_seen, on_batch, scorer_of=None):
        found = [(batch.users, batch.targets, batch.targets * 100.0 + batch.users) for batch in batches]
        return shared_ranking.Ranking(*(torch.cat(part).double() for part in zip(*found, strict=True)))

    monkeypatch.setattr(shared_ranking, "rank_rows", ranked)
    expected = shared_ranking.rank_together(None, rows, batch_size, exclude_seen=False)
    own = []
    for rank in range(count):  # each share by itself; then what gathering them gives
        batches = evaluation_batches(rows, batch_size, "cpu", rank, count)
        own.append(ranked(None, batches, exclude_seen=False, on_batch=None).ranks)
    assert all(len(ranks) for ranks in own)
    monkeypatch.setattr(shared_ranking, "share_of", lambda rows: (0, count))
    monkeypatch.setattr(shared_ranking, "gather_rows", lambda values: values if len(values) == 1 else torch.cat(own))
    found = shared_ranking.rank_together(None, rows, batch_size, exclude_seen=False)
    for name in ("users", "targets", "ranks"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name


def test_a_process_that_cannot_rank_ends_the_others(small_data, monkeypatch):
    rows = prepare(small_data).rows("test", 5)
    monkeypatch.setattr(shared_ranking, "share_of", lambda rows: (0, 2))

    def broken(model, batches, **options):
        raise EvaluationError("user 7: no")

    failures = []
    monkeypatch.setattr(shared_ranking, "gather_rows", lambda values: failures.append(values.tolist()) or torch.ones(2))
    monkeypatch.setattr(shared_ranking, "rank_rows", broken)
    with pytest.raises(EvaluationError, match="user 7"):
        shared_ranking.rank_together(None, rows, 8, exclude_seen=False)
    assert failures == [[1.0]]  # the others are told before this one leaves
    fine = shared_ranking.Ranking(*(torch.zeros(3) for _ in range(3)))
    monkeypatch.setattr(shared_ranking, "rank_rows", lambda *_, **__: fine)
    with pytest.raises(RunError, match="another process of the run could not rank its rows"):
        shared_ranking.rank_together(None, rows, 8, exclude_seen=False)
