"""A training step of SASRec and of PLR with the softmax over all items, and with sampled ones.

    OMP_NUM_THREADS=1 python -m bench.sampled_losses --record

Loss, gradients and Adam's update, on histories of 50 random items, one target each. In every round each way has one
turn, and ratios are taken round by round, of the processor time of the one thread: the clock's is other programs', too.
`--record` writes bench/results/sampled_losses.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.conftest import instruction_set
from bench.records import RESULTS, write_record
from bench.training_step import random_batch, take_step
from plr.config import Config
from plr.models import build_model
from plr.models.sampled_items import ItemSampler
from plr.training.module import build_optimizer, sparse_table_gradients

PLR = {"streams": 4, "steps": 2, "consistency_weight": 0.0}
WAYS = {
    "softmax": {},
    "sampled_softmax": {"loss": "sampled_softmax"},
    "sampled_softmax, Adam over the whole table": {"loss": "sampled_softmax", "sparse_adam": False},
}


def training_step(config: Config, items: int) -> Callable[[], None]:
    """A step of a new model, as training takes it."""
    model = build_model(config, items).train()
    if config.loss != "softmax":
        model.sampler = ItemSampler(config, torch.ones(items, dtype=torch.int64))
        if config.sparse_adam:
            sparse_table_gradients(model)
    optimizer = build_optimizer(model, config)
    batch = random_batch(config, items)
    calls = 0

    def step() -> None:
        nonlocal calls
        take_step(model, optimizer, batch, calls)
        calls += 1

    return step


def measured(method: str, items: int, dim: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in each round, after one to warm up."""
    shared = {"method": method, "dim": dim, "training_rows": "prefix", **(PLR if method == "plr" else {})}
    steps = {name: training_step(Config(**shared, **way), items) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], way: str) -> list[float]:
    """How many times as long the softmax over all items takes as another way, in each round."""
    return [one / other for one, other in zip(seconds["softmax"], seconds[way], strict=True)]


def main() -> None:
    """Measure, print and, where asked, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument("--record", action="store_true", help="write the result")
    parser.add_argument("--out", type=Path, default=RESULTS / "sampled_losses.json", help="where to")
    options = parser.parse_args()
    config = Config(training_rows="prefix")
    record = {
        "command": f"python -m bench.sampled_losses --items {options.items} --dim {options.dim} "
        f"--rounds {options.rounds} --record",
        "note": options.note,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "sizes": {"items": options.items, "dim": options.dim, "batch_size": config.batch_size,
                  "max_length": config.max_length, "layers": config.layers, "negatives": config.negatives, "plr": PLR},
        "processor_seconds": {}, "times_as_long": {},
    }  # fmt: skip
    for method in ("base", "plr"):
        seconds = record["processor_seconds"][method] = measured(method, options.items, options.dim, options.rounds)
        found = record["times_as_long"][method] = {way: ratios(seconds, way) for way in WAYS if way != "softmax"}
        for way, each in found.items():
            print(
                f"{method}: softmax takes {statistics.median(each):.1f} times as long as {way} "
                f"({min(each):.1f} to {max(each):.1f}); {statistics.median(seconds['softmax']):.2f} s and "
                f"{statistics.median(seconds[way]):.3f} s",
                flush=True,
            )
    if options.record:
        write_record(options.out, record)


if __name__ == "__main__":
    main()
