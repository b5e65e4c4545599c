"""A training epoch with linear layers by PyTorch's product, by oneDNN's and in bfloat16: SASRec, PLR on sequence rows.

    OMP_NUM_THREADS=1 python -m bench.linear_products --data Steam.csv.gz

The ways train a system of their own each in turns, a share of its epoch at a time; ratios to the first are taken turn
by turn. Batches are shuffled, as in training. PLR computes a batch's histories in buckets of like length, which seldom
have as many rows as those of another batch, and for each number of rows oneDNN makes machine code: so rows are padded
to few counts, and beside it stands what leaves them as they are. Bfloat16 is by autocast, where the CPU has AVX-512.
Seconds are of processor time, with one thread: the machine may be busy. Systems and sizes are those of `bench.epochs`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.epochs import Epochs, configurations
from bench.records import RESULTS, write_record
from plr.config import Config
from plr.data import SequenceDataset
from plr.inputs import load_dataset
from plr.models.layers import linear
from plr_kernels import extension

FIRST = "PyTorch"
# Of each way: whether float32 products are oneDNN's, whether numbers are bfloat16, whether rows are padded.
WAYS = {
    FIRST: (False, False, True),
    "oneDNN": (True, False, True),
    "oneDNN, rows as they are": (True, False, False),
    "bfloat16": (False, True, True),
    "bfloat16, rows as they are": (False, True, False),
}
SYSTEMS = ("SASRec, sequence", "PLR, M 2, T 1, sequence")


def ways_here() -> list[str]:
    """Those that this CPU has, FIRST first.

    Raises:
        SystemExit: this build of PyTorch has no oneDNN product.
    """
    if linear._onednn() is None:
        raise SystemExit("this build of PyTorch has no oneDNN product")
    return [name for name, (_, halved, _) in WAYS.items() if linear._BFLOAT16_BY_ONEDNN or not halved]


def as_they_are(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """In the place of few_counts."""
    return rows.to(dtype or rows.dtype)


@contextmanager
def by(way: str) -> Iterator[None]:
    """Linear layers compute in this way."""
    of_float32, halved, padded = WAYS[way]
    before = linear._ONEDNN, linear.few_counts
    linear._ONEDNN = linear._onednn() if of_float32 else None
    linear.few_counts = before[1] if padded else as_they_are
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            yield
    finally:
        linear._ONEDNN, linear.few_counts = before


def measure(
    configs: dict[str, Config],
    dataset: SequenceDataset,
    *,
    share: float,
    rounds: int,
    targets: int = 256,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, Any]]:
    """Let the ways take turns; return of each system the seconds an epoch by each, and their ratios to the first."""
    found = {}
    ways = ways_here()
    for name, config in configs.items():
        systems = {way: Epochs(config, dataset, targets, share, clock, grouped=False) for way in ways}
        for turn in range(1 + rounds):  # the first warms up
            for way in ways if turn % 2 else reversed(ways):
                with by(way):
                    systems[way].turn()
        seconds = {way: system.seconds[1:] for way, system in systems.items()}
        ratios = {
            way: [other / first for first, other in zip(seconds[FIRST], seconds[way], strict=True)] for way in ways[1:]
        }
        found[name] = {"seconds": seconds, "ratios": ratios}
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
        print(f"{name}: {FIRST} {statistics.median(each['seconds'][FIRST]):.1f} s an epoch")
        for way, ratios in each["ratios"].items():
            print(f"  {way}: {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
