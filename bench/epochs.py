"""Seconds of a training epoch on prefix rows and on sequence rows: SASRec, PLR, ERL and PRL on one data set.

    python -m bench.epochs --data Beauty.txt --name beauty
    python -m bench.epochs --data ML-1M.csv.gz --name ml-1m --dim 256 --share 0.02

All systems learn the same targets, and take steps of about as many (--targets, as with `--batch_unit targets`). The
systems take turns, each a share of its epoch at a time (whole batches, spread over the epoch), and what a turn took is
scaled to all targets of an epoch; ratios are taken turn by turn. Counted are gathering the batch, the losses, their
gradients and Adam's update; not what Lightning does around them. Width 64, two layers, two heads, at most 50 items,
dropout 0.2 on the input and 0.5 inside, float32, PLR with M = 2 and T = 1, ERL and PRL with two steps. Writes
bench/results/epochs-NAME.json and .md. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.conftest import instruction_set
from bench.records import RESULTS, write_record, write_text
from bench.summary import header
from bench.training_step import take_step
from plr.config import Config
from plr.data import Batch, LengthGroupedBatches, SequenceDataset
from plr.inputs import load_dataset
from plr.models import build_model
from plr.training.module import RowDataset, build_optimizer, step_seed, training_rows

SYSTEMS: dict[str, dict[str, Any]] = {
    "SASRec": {"method": "base"},
    "PLR, M 2, T 1": {"method": "plr", "streams": 2, "steps": 1},
    "PLR, M 1, T 1": {"method": "plr", "streams": 1, "steps": 1},
    "PLR, M 2, T 1, no second view": {"method": "plr", "streams": 2, "steps": 1, "consistency_weight": 0.0},
    "ERL": {"method": "erl"},
    "PRL": {"method": "prl", "warmup_epochs": 0},  # as in all epochs but the first two
}
FIRST = "SASRec, prefix"


@dataclass
class Epochs:
    """The epochs of one system, one share of one after the other.

    Args:
        config: the system's.
        dataset: the data.
        targets: about how many targets a step has.
        share: of an epoch's steps that a turn takes; one at least.
        clock: what seconds are read from.
        grouped: whether a batch's rows are of like length.
    """

    config: Config
    dataset: SequenceDataset
    targets: int
    share: float
    clock: Callable[[], float]
    grouped: bool = True
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = training_rows(self.dataset, self.config)
        self.all_targets = len(self.dataset.target_positions("train"))
        self.order = LengthGroupedBatches(
            rows.lengths, self.targets, shuffle=True, grouped=self.grouped, counts=rows.target_counts()
        )
        self.rows_per_step = len(rows) / len(self.order)
        self.rows = RowDataset(rows, self.order, None)
        self.model = build_model(self.config, self.dataset.num_items).train()
        self.model.epoch = self.config.warmup_epochs
        self.optimizer = build_optimizer(self.model, self.config)
        self.steps = 0

    def turn(self) -> None:
        """Train on a share of the next epoch and note the seconds that all of it would have taken."""
        self.order.set_epoch(len(self.seconds))
        start, targets = self.clock(), 0
        for batch in self._batches():
            self.step(batch)
            targets += batch.each_target.ne(-100).sum().item()
        self.seconds.append((self.clock() - start) * self.all_targets / targets)

    def step(self, batch: Batch) -> None:
        """One step, as training takes it."""
        take_step(self.model, self.optimizer, batch, step_seed(self.config.seed, self.steps, 0))
        self.steps += 1

    def positions(self) -> int:
        """How many positions the encoder reads in an epoch, padding included."""
        self.order.set_epoch(0)
        return sum(self.rows[index].item_ids.numel() for index in self.order)

    def _batches(self) -> Iterator[Batch]:
        taken = max(1, round(self.share * len(self.order)))
        chosen = {len(self.order) * number // taken for number in range(taken)}
        return (self.rows[index] for number, index in enumerate(self.order) if number in chosen)


def configurations(
    dim: int, max_length: int, per_row: list[int], data: str, only: list[str] | None = None
) -> dict[str, Config]:
    """Return what is compared: each system with prefix rows, with sequence rows, and with `per_row` targets a row.

    only: these systems, beside SASRec; None for all.
    """
    common = {
        "data": data, "dim": dim, "ffn_dim": 4 * dim, "max_length": max_length, "input_dropout": 0.2,
        "hidden_dropout": 0.5, "attention_dropout": 0.5,
    }  # fmt: skip
    found = {}
    for name, options in SYSTEMS.items():
        if only is not None and name not in ("SASRec", *only):
            continue
        found[f"{name}, prefix"] = Config(**common, **options, training_rows="prefix")
        for count in (0, *per_row):
            rows = f"sequence, {count} a row" if count else "sequence"
            context = -(-3 * max_length // 4)  # the same windows for all
            found[f"{name}, {rows}"] = Config(
                **common, **options, training_rows="sequence", targets_per_row=count, min_context=context
            )
    return found


def measure(
    configs: dict[str, Config],
    dataset: SequenceDataset,
    *,
    targets: int,
    share: float,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Let the systems take turns; return of each its figures."""
    systems = {name: Epochs(config, dataset, targets, share, clock) for name, config in configs.items()}
    for system in systems.values():
        system.step(system.rows[next(iter(system.order))])  # warm
    for _ in range(rounds):
        for system in systems.values():
            system.turn()
    first = systems[FIRST].seconds
    return {
        name: {
            "rows_per_step": system.rows_per_step,
            "steps": len(system.order),
            "positions": system.positions(),
            "seconds": system.seconds,
            "ratio": statistics.median(own / other for own, other in zip(system.seconds, first, strict=True)),
        }
        for name, system in systems.items()
    }


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of the Markdown table."""
    lines = header("system and rows", "rows a step", "steps", "positions", "seconds an epoch", f"of {FIRST}")
    for name, each in found.items():
        seconds = statistics.median(each["seconds"])
        lines.append(
            f"| {name} | {each['rows_per_step']:.1f} | {each['steps']} | {each['positions']:,} | {seconds:.1f} | "
            f"{each['ratio']:.2f} |"
        )
    return lines


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of interactions or a prepared folder")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--targets", type=int, default=256, help="targets of a step, about")
    parser.add_argument("--targets_per_row", type=int, nargs="*", default=[], help="also deal so many to a row")
    parser.add_argument("--share", type=float, default=1.0, help="of an epoch that a turn takes")
    parser.add_argument("--cpu_seconds", action="store_true", help="processor time; for a busy machine, with a thread")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, help="these systems, beside SASRec")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    configs = configurations(
        arguments.dim, arguments.max_length, arguments.targets_per_row, arguments.data, arguments.only
    )
    dataset = load_dataset(configs[FIRST])
    found = measure(
        configs,
        dataset,
        targets=arguments.targets,
        share=arguments.share,
        rounds=arguments.rounds,
        clock=time.process_time if arguments.cpu_seconds else time.perf_counter,
    )
    targets = len(dataset.target_positions("train"))
    lines = table(found)
    clock = " of processor time" if arguments.cpu_seconds else ""
    lines += [
        "",
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {targets:,} targets an epoch; d {arguments.dim}, "
        f"at most {arguments.max_length} items, about {arguments.targets} targets a step; seconds{clock}: median of "
        f"{arguments.rounds} rounds, {arguments.threads} threads, {100 * arguments.share:g}% of an epoch a turn, "
        f"{instruction_set()}; the last column is the median of the rounds' ratios.",
    ]
    record = {
        "arguments": {name: value for name, value in vars(arguments).items() if name not in ("out", "data")},
        "torch": torch.__version__,
        "machine": platform.machine(),
        "instruction_set": instruction_set(),
        "systems": found,
    }
    write_record(arguments.out / f"epochs-{arguments.name}.json", record)
    write_text(arguments.out / f"epochs-{arguments.name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
