"""Seconds of a training epoch of SASRec: RecTools' three ways and ours, in turn on one machine.

    python -m bench.compare_epochs --peer-python rectools-env/bin/python --data Beauty.txt --rounds 3

rectools_epoch.py says how to make the peer's environment, and what its models are: SASRecModel, FlatSASRecNet of its
`fast_transformers`, and that with logits where a target counts alone. Each round trains each for one epoch, then ours,
in processes of their own with the same number of threads; only the epoch is counted, on either side. Width 64, two
layers, two heads, dropout 0.5, at most 50 items, batches of 128 users, full softmax, float32. RecTools keeps freed
memory (its faster setting on Linux). Writes bench/results/epochs.json, or --out. Nothing else should be running.
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

from bench.conftest import instruction_set
from bench.records import RESULTS, write_record

HERE = Path(__file__).parent


PEERS = {
    "SASRecModel": "sasrec",
    "FlatSASRecNet": "flat",
    "FlatSASRecNet, logits of targets": "flat-targets",
}


def peer_epoch(python: str, model: str, data: str, threads: int) -> dict:
    """Return the measurement of one of RecTools' models."""
    command = [python, str(HERE / "rectools_epoch.py"), "--data", data, "--model", model, "--epochs", "1"]
    command += ["--threads", str(threads), "--keep-memory"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def our_epoch(data: str, threads: int) -> float:
    """Return the seconds of our epoch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "plr", "train", "--data", data, "--out", f"{folder}/run"]
        command += ["--method", "base", "--dim", "64", "--ffn_dim", "64", "--input_dropout", "0.5"]
        command += ["--min_context", "1"]  # RecTools' models see a user's last 50 items alone
        command += ["--batch_size", "128", "--epochs", "1", "--threads", str(threads), "--progress", "false"]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(Path(folder, "run", "metrics.json").read_text())["train_seconds_per_epoch"]


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with RecTools")
    parser.add_argument("--data", required=True, help="a line `user item item ...` per user")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "epochs.json")
    arguments = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        seconds = {}
        for name, model in PEERS.items():
            peer = peer_epoch(arguments.peer_python, model, arguments.data, arguments.threads)
            seconds[name] = peer["median_epoch_seconds"]
        seconds["plr"] = our_epoch(arguments.data, arguments.threads)
        rounds.append(seconds)
        print(", ".join(f"{name} {each:.1f} s" for name, each in seconds.items()), flush=True)
    ratios = {name: [each[name] / each["plr"] for each in rounds] for name in PEERS}
    record = {
        "rounds": rounds,
        "median_ratio": {name: statistics.median(each) for name, each in ratios.items()},
        "threads": arguments.threads,
        "instruction_set": instruction_set(),
        "rectools": peer["versions"],
    }
    write_record(arguments.out, record)
    for name, each in ratios.items():
        print(f"{name}: {statistics.median(each):.1f} times ours, from {min(each):.1f} to {max(each):.1f}")


if __name__ == "__main__":
    main()
