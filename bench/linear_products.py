"""A training epoch with linear layers by PyTorch's own product and by oneDNN's: SASRec and PLR on sequence rows.

    OMP_NUM_THREADS=1 python -m bench.linear_products --data Steam.csv.gz

Both products train a system of their own in turns, a share of its epoch at a time; ratios are taken turn by turn.
Batches are shuffled, as in training. PLR computes a batch's histories in buckets of like length, which seldom have as
many rows as those of another batch, and for each number of rows oneDNN makes machine code. Seconds are of processor
time, with one thread: the machine may be busy. Systems and sizes are those of `bench.epochs`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.epochs import Epochs, configurations
from bench.records import RESULTS, write_record
from plr.config import Config
from plr.data import SequenceDataset
from plr.inputs import load_dataset
from plr.models.layers import linear
from plr_kernels import extension

PRODUCTS = ("PyTorch", "oneDNN")
SYSTEMS = ("SASRec, sequence", "PLR, M 2, T 1, sequence")


def measure(
    configs: dict[str, Config],
    dataset: SequenceDataset,
    *,
    share: float,
    rounds: int,
    targets: int = 256,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, Any]]:
    """Let the products take turns; return of each system the seconds an epoch by either, and their median ratio.

    Raises:
        SystemExit: this build of PyTorch has no oneDNN product.
    """
    onednn, taken = linear._onednn(), linear._ONEDNN
    if onednn is None:
        raise SystemExit("this build of PyTorch has no oneDNN product")
    found = {}
    try:
        for name, config in configs.items():
            systems = {product: Epochs(config, dataset, targets, share, clock, grouped=False) for product in PRODUCTS}
            for turn in range(1 + rounds):  # the first warms up
                for product in PRODUCTS if turn % 2 else reversed(PRODUCTS):
                    linear._ONEDNN = onednn if product == "oneDNN" else None
                    systems[product].turn()
            seconds = {product: system.seconds[1:] for product, system in systems.items()}
            ratios = [slow / fast for fast, slow in zip(*(seconds[product] for product in PRODUCTS), strict=True)]
            found[name] = {"seconds": seconds, "ratios": ratios, "ratio": statistics.median(ratios)}
    finally:
        linear._ONEDNN = taken
    return found


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of interactions or a prepared folder")
    parser.add_argument("--share", type=float, default=0.1, help="of an epoch that a turn takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--machine", default="", help="to be written down")
    parser.add_argument("--out", type=Path, default=RESULTS / "linear_products.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = configurations(64, 50, [], arguments.data, ["PLR, M 2, T 1"])
    configs = {name: every[name] for name in SYSTEMS}
    found = measure(configs, load_dataset(configs[SYSTEMS[0]]), share=arguments.share, rounds=arguments.rounds)
    record = {
        "machine": arguments.machine,
        "instruction_set": extension.instruction_set(),
        "torch": torch.__version__,
        "share": arguments.share,
        "systems": found,
    }
    write_record(arguments.out, record)
    for name, each in found.items():
        medians = ", ".join(f"{product} {statistics.median(each['seconds'][product]):.1f} s" for product in PRODUCTS)
        spread = f"{min(each['ratios']):.2f} to {max(each['ratios']):.2f}"
        print(f"{name}: {medians} an epoch; oneDNN takes {each['ratio']:.2f} times as long ({spread})")


if __name__ == "__main__":
    main()
