"""Seconds of a training epoch of SASRec: RecTools' and ours, in turn on one machine.

    python -m bench.compare_epochs --peer-python rectools-env/bin/python --data Beauty.txt --pairs 3

rectools_epoch.py says how to make the peer's environment. Each pair trains RecTools for one epoch, then ours, in
processes of their own with the same number of threads; only the epoch is counted, on either side. Width 64, two layers,
two heads, dropout 0.5, at most 50 items, batches of 128 users, full softmax, float32. RecTools keeps freed memory (its
faster setting on Linux). Writes bench/results/epochs.json. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.records import RESULTS, write_record

HERE = Path(__file__).parent


def peer_epoch(python: str, data: str, threads: int) -> dict:
    """Return RecTools' measurement."""
    command = [python, str(HERE / "rectools_epoch.py"), "--data", data, "--epochs", "1"]
    command += ["--threads", str(threads), "--keep-memory"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def our_epoch(data: str, threads: int) -> float:
    """Return the seconds of our epoch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "plr", "train", "--data", data, "--out", f"{folder}/run"]
        command += ["--method", "base", "--dim", "64", "--ffn_dim", "64", "--input_dropout", "0.5"]
        command += ["--batch_size", "128", "--epochs", "1", "--threads", str(threads), "--progress", "false"]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(Path(folder, "run", "metrics.json").read_text())["train_seconds_per_epoch"]


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with RecTools")
    parser.add_argument("--data", required=True, help="a line `user item item ...` per user")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    pairs = []
    for _ in range(arguments.pairs):
        peer = peer_epoch(arguments.peer_python, arguments.data, arguments.threads)
        ours = our_epoch(arguments.data, arguments.threads)
        seconds = peer["median_epoch_seconds"]
        pairs.append({"rectools": seconds, "plr": ours, "ratio": seconds / ours})
        print(f"RecTools {seconds:.1f} s, plr {ours:.1f} s, ratio {seconds / ours:.1f}", flush=True)
    ratios = [pair["ratio"] for pair in pairs]
    record = {"pairs": pairs, "median_ratio": statistics.median(ratios), "threads": arguments.threads}
    record["rectools"] = peer["versions"]
    write_record(RESULTS / "epochs.json", record)
    print(f"ratio: median {statistics.median(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f}")


if __name__ == "__main__":
    main()
