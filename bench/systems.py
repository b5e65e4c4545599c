"""Every backbone with every method on one data set, several seeds, equal budget: the paper's Table 2 in small.

    python -m bench.systems --name beauty --data Beauty.txt --out runs/beauty-systems
    python -m bench.systems --name games --data Games.txt --out runs/games-systems --set text_vectors=games-text

Trains what is not finished under --out (interrupted runs are resumed), then writes
bench/results/systems-NAME.md, .json and .png: every finished run's configuration, metrics and validation by epoch,
mean and spread over seeds, each method against the bare backbone. --backbones and --methods choose cells, so that
several processes may share the work; --summarize only writes.

All cells have the same rows (one per prefix), batches, width, budget, optimiser, dropout and early stopping; none is
tuned. What a system needs beyond that is given by --set FIELD=VALUE for all cells, or --set SYSTEM:FIELD=VALUE for
those of one backbone or method.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from bench import learning_curves
from bench.records import RESULTS, write_record, write_text
from bench.summary import METRICS, header, scores, scores_of_runs, trained
from plr.config import Config
from plr.evaluation import Comparison, compare, holm, load_ranking, metrics, popularity_ranks
from plr.inputs import load_dataset
from plr.runs import RunFolder

BACKBONES = ("sasrec", "bert4rec", "unisrec")
# Each method's name here and what it is. Records that name no "plr-states" call it "plr": it was the only one then.
METHODS: dict[str, dict[str, Any]] = {
    "base": {"method": "base"},
    "erl": {"method": "erl"},
    "prl": {"method": "prl"},
    "lares": {"method": "lares"},
    "plr": {"method": "plr"},
    "plr-states": {"method": "plr", "mixture": "states", "streams": 2},  # as the paper prints it
}

# The settings of all cells. Dropout as in ReaRec's public code; M = T = 2 and lambda = 0.1 are the paper's.
COMMON: dict[str, Any] = {
    "training_rows": "prefix",
    "batch_size": 512,
    "dim": 64,
    "ffn_dim": 256,
    "input_dropout": 0.2,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "patience": 3,
}

Cell = tuple[str, str]  # backbone, method


def settings(assignments: Iterable[str], cell: Cell) -> dict[str, Any]:
    """Return the fields that `[SYSTEM:]FIELD=VALUE` assignments set for one cell; values are YAML."""
    chosen = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise SystemExit(f"--set takes FIELD=VALUE or SYSTEM:FIELD=VALUE; found {assignment!r}")
        system, _, field = name.rpartition(":")
        if system in ("", *cell):
            chosen[field] = yaml.safe_load(value)
    return chosen


def configuration(arguments: argparse.Namespace, cell: Cell, seed: int) -> Config:
    """Return the configuration of one run."""
    backbone, method = cell
    values = COMMON | METHODS[method] | {"epochs": arguments.epochs} | settings(arguments.set, cell)
    out = arguments.out / f"{backbone}-{method}-seed{seed}"
    return Config(
        data=arguments.data,
        out=str(out),
        backbone=backbone,
        seed=seed,
        threads=arguments.threads,
        progress=sys.stderr.isatty(),
        **values,
    )


def finished(arguments: argparse.Namespace, cell: Cell) -> dict[int, RunFolder]:
    """Return the finished runs of a cell by seed."""
    folders = {seed: RunFolder(arguments.out / f"{cell[0]}-{cell[1]}-seed{seed}") for seed in range(arguments.seeds)}
    return {seed: folder for seed, folder in folders.items() if folder.finished()}


def all_finished(arguments: argparse.Namespace) -> dict[Cell, dict[int, RunFolder]]:
    """Return the finished runs of every cell that has one."""
    cells = {
        (backbone, method): runs
        for backbone in BACKBONES
        for method in METHODS
        if (runs := finished(arguments, (backbone, method)))
    }
    if not cells:
        raise SystemExit(f"{arguments.out}: no finished run")
    return cells


def summary(cells: dict[Cell, dict[int, RunFolder]]) -> tuple[str, dict[str, Any]]:
    """Return the Markdown table and the record of the finished runs."""
    some = next(iter(next(iter(cells.values())).values()))
    config = Config.load(some.config)
    dataset = load_dataset(config)
    popularity = metrics(popularity_ranks(dataset.popularity(), dataset.target_items("test")))
    comparisons = against("base", cells)

    lines = [
        *header("backbone", "method", *METRICS, "seeds", "NDCG@10 − base, per user"),
        "| popularity | | " + " | ".join(scores(popularity)) + " | | |",
    ]
    record: dict[str, Any] = {"popularity": popularity, "cells": {}}
    for cell, folders in cells.items():
        results = {seed: folder.read_metrics() for seed, folder in folders.items()}
        cells_of_runs = " | ".join(scores_of_runs(list(results.values())))
        lines.append(
            f"| {cell[0]} | {cell[1]} | {cells_of_runs} | {len(results)} | {described(comparisons.get(cell))} |"
        )
        record["cells"]["+".join(cell)] = [
            {
                "config": without_folders(asdict(Config.load(folders[seed].config))),
                **{key: run[key] for key in ("best_epoch", "epochs", "train_seconds_per_epoch", "parameters")},
                "valid": run["valid"],
                "test": run["test"],
                "valid_ndcg@10_by_epoch": list(learning_curves.learning_curve(folders[seed]).values()),
            }
            for seed, run in results.items()
        ]
    wanted = [(backbone, method) for backbone in BACKBONES for method in METHODS]
    missing = record["missing"] = ["+".join(cell) for cell in wanted if cell not in cells]
    lines += [
        "",
        f"Test of {len(dataset.targets['test'])} rows, all {dataset.num_items} items ranked, {dataset.split} split, "
        f"at most {config.epochs} epochs; mean and standard deviation over seeds. The last column: difference to the "
        "bare backbone per user, averaged over the seeds both have, 95 % interval over users and seeds, and p of the "
        "paired t-test over users, Holm-corrected over the table.",
    ]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n", record


def without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the names of its files, not where they lay."""
    return {
        name: Path(value).name if isinstance(value, str) and "/" in value else value for name, value in values.items()
    }


def against(reference: str, cells: dict[Cell, dict[int, RunFolder]]) -> dict[Cell, tuple[Comparison, float]]:
    """Compare each method with `reference` on its backbone and the seeds that both have; p Holm-corrected over all."""
    found = {}
    for cell, folders in cells.items():
        other = cells.get((cell[0], reference), {})
        seeds = sorted(set(folders) & set(other))
        if cell[1] != reference and seeds:
            pair = [[load_ranking(runs[seed].ranks("test")) for seed in seeds] for runs in (folders, other)]
            found[cell] = compare(*pair)
    corrected = holm([comparison.p_value for comparison in found.values()]) if found else []
    return {cell: (comparison, float(p)) for (cell, comparison), p in zip(found.items(), corrected, strict=True)}


def described(comparison: tuple[Comparison, float] | None) -> str:
    """Return a comparison as a cell of the table."""
    if comparison is None:
        return ""
    found, p = comparison
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p = {p:.2g}"


def main() -> None:
    """Train what is missing, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--data", required=True, help="as in `plr train`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="[SYSTEM:]FIELD=VALUE", help="further fields"
    )
    parser.add_argument("--summarize", action="store_true", help="only write the results of finished runs")
    arguments = parser.parse_args()
    if not arguments.summarize:
        # Seed by seed: an interrupted comparison has complete tables of the first seeds.
        for seed in range(arguments.seeds):
            for backbone in arguments.backbones:
                for method in arguments.methods:
                    trained(configuration(arguments, (backbone, method), seed))
    cells = all_finished(arguments)
    table, record = summary(cells)
    curves = {
        cell: [learning_curves.learning_curve(folder) for folder in folders.values()] for cell, folders in cells.items()
    }
    learning_curves.draw(curves, RESULTS / f"systems-{arguments.name}.png")
    write_record(RESULTS / f"systems-{arguments.name}.json", record)
    write_text(RESULTS / f"systems-{arguments.name}.md", table)
    print(table)


if __name__ == "__main__":
    main()
