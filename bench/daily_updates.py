"""Updates by `plr train --from` beside training from nothing: results/daily_updates-NAME.json and .md.

They are written anew after each update.

    OMP_NUM_THREADS=1 python -m bench.daily_updates --data Steam.csv.gz --name steam

The file is cut into periods by time. Before update i training holds all that is before period i, which validates, and
the test is period i + 1: what comes next. Four ways, all validated and tested on the same rows:

- retrained: from random weights, on all training targets;
- updated, all rows: from the run of the update before, on all training targets again;
- updated, new rows: likewise, on the targets that came since alone (`train_time`), with whole histories;
- unchanged: the first run, as it is; rows with an item that it does not know count as missed.

Each run takes its best epoch by the validation rows and stops `patience` epochs after it. Cost is processor time of
the whole of `plr.training.train` but for imports: reading, training, validation, test.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from bench.records import RESULTS, write_record, write_text
from bench.summary import header
from plr.config import Config
from plr.prepare import PrepareOptions, write_folder
from plr.runs import RunFolder
from plr.serving.evaluate import evaluate_run
from plr.training import train

DAY = 86_400
METRIC = "ndcg@10"
SIZES: dict[str, Any] = {"method": "base", "layers": 1, "max_length": 50, "hidden_dropout": 0.2,
                         "attention_dropout": 0.2, "batch_size": 128, "split": "time", "progress": False,
                         "accelerator": "cpu", "threads": 1}  # fmt: skip
WAYS = {
    "retrained": {"epochs": 30, "patience": 3},
    "updated, all rows": {"epochs": 4, "patience": 1},
    "updated, new rows": {"epochs": 4, "patience": 1},
}
UNCHANGED = "unchanged"


def run(config: Config) -> dict[str, Any]:
    """Train, and return what is recorded of it."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(config)
    seconds = time.process_time() - began
    record = {METRIC: result["test"][METRIC], "recall@10": result["test"]["recall@10"], "rows": result["test"]["rows"],
              "epochs": result["epochs"], "best_epoch": result["best_epoch"], "seconds": seconds}  # fmt: skip
    return record | ({"items": result["from"]["items"]} if "from" in result else {})


def bench(
    data: Path, folder: Path, *, days: float, updates: int, seed: int, sizes: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Make all runs; yields the record of the updates so far after each."""
    frame = pl.read_csv(data)
    period, end = int(days * DAY), int(frame["timestamp"].max()) + 1  # type: ignore[arg-type]
    previous: dict[str, Path] = {}
    found: list[dict[str, Any]] = []
    gains: dict[str, list[np.ndarray]] = {name: [] for name in WAYS}
    for number in range(updates + 1):  # 0 is the run that all others begin with
        valid_time = end - (updates + 2 - number) * period
        test_time = valid_time + period
        path = folder / f"data-{number}.csv"
        frame.filter(pl.col("timestamp") < test_time + period).write_csv(path)
        here: dict[str, Any] = {"update": number}
        for way, budget in WAYS.items():
            if number == 0 and way != "retrained":
                previous[way] = previous["retrained"]
                continue
            out = folder / f"{number}-{way}"
            begun = None if way == "retrained" else str(previous[way])
            late = valid_time - period if way == "updated, new rows" else None
            config = Config(**SIZES, **sizes, **budget, seed=seed, data=str(path), out=str(out), from_run=begun,
                            train_time=late, valid_time=valid_time, test_time=test_time)  # fmt: skip
            here[way] = run(config)
            previous[way] = out
            if number:
                ranks = pl.read_parquet(RunFolder(out).ranks("test"))
                gains[way].append(np.where(ranks["rank"] <= 10, 1 / np.log2(ranks["rank"].to_numpy() + 1), 0.0))
                if way == "retrained":
                    targets = ranks.select("user_id", "item_id")
                assert targets.equals(ranks.select("user_id", "item_id"))  # the same rows in the same order
            print(number, way, here[way], flush=True)
        if number:
            here[UNCHANGED] = unchanged(folder / "0-retrained", path, valid_time, test_time, here["retrained"]["rows"])
            print(number, UNCHANGED, here[UNCHANGED], flush=True)
        found.append(here)
        if not number:
            continue
        differences = {
            way: _interval([one - other for one, other in zip(gains[way], gains["retrained"], strict=True)])
            for way in WAYS
            if way != "retrained"
        }
        yield {
            "data": data.name, "days": days, "updates": number, "seed": seed, "sizes": {**SIZES, **sizes}, "ways": WAYS,
            "runs": list(found), "differences": differences, "torch": torch.__version__, "machine": platform.machine(),
        }  # fmt: skip


def unchanged(run: Path, data: Path, valid_time: int, test_time: int, rows: int) -> dict[str, float]:
    """Return what a run, as it is, reaches on the test rows of data that are cut at these times."""
    prepared = data.with_suffix("")  # an evaluation of raw data would cut them where the run's were
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_folder([data], prepared, PrepareOptions(split="time", valid_time=valid_time, test_time=test_time))
        outcome = evaluate_run(run, str(prepared))
    share = outcome.rows / rows
    return {METRIC: outcome.metrics[METRIC] * share, "known_rows": share, "seconds": 0.0}


def _interval(differences: Sequence[np.ndarray]) -> list[float]:
    """Return the mean over all rows, and its 95 % interval from their spread, as if all were of other users."""
    every = np.concatenate(differences)
    half = 1.96 * float(every.std(ddof=1)) / len(every) ** 0.5
    return [float(every.mean()), float(every.mean()) - half, float(every.mean()) + half]


def markdown(record: dict[str, Any]) -> str:
    """Return the page."""
    runs = record["runs"][1:]
    rows = sum(each["retrained"]["rows"] for each in runs)
    lines = [f"# {record['data']}: {record['updates']} updates, one every {_days(record['days'])}", ""]
    lines += [f"`python -m bench.daily_updates`; SASRec, d {record['sizes']['dim']}, one seed; {rows:,} test rows in "
              "all; what the ways are stands in the command's docstring.", ""]  # fmt: skip
    lines += header("way", "test ndcg@10 over all rows", "minus retrained (95 % interval)", "processor s an update",
                    "epochs an update")  # fmt: skip
    for way in (*WAYS, UNCHANGED):
        mean = sum(each[way][METRIC] * each["retrained"]["rows"] for each in runs) / rows
        difference = record["differences"].get(way)
        shown = "" if difference is None else "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference)
        seconds = statistics.mean(each[way]["seconds"] for each in runs)
        epochs = "" if way == UNCHANGED else f"{statistics.mean(each[way]['epochs'] for each in runs):.1f}"
        lines.append(f"| {way} | {mean:.4f} | {shown} | {seconds:.1f} | {epochs} |")
    lines += ["", "Test ndcg@10 by update:", "", *header("update", "rows", *WAYS, UNCHANGED, "new items")]
    for each in runs:
        cells = [f"{each[way][METRIC]:.4f}" for way in (*WAYS, UNCHANGED)]
        new = each["updated, new rows"]["items"]["new"]
        lines.append(f"| {each['update']} | {each['retrained']['rows']:,} | {' | '.join(cells)} | {new} |")
    return "\n".join(lines) + "\n"


def _days(days: float) -> str:
    return "day" if days == 1 else f"{days:g} days"


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a CSV file with columns user, item, timestamp (s)")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--days", type=float, default=14, help="between two updates")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for the result files")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for record in bench(given.data, Path(folder), days=given.days, updates=given.updates, seed=given.seed,
                            sizes={"dim": given.dim, "ffn_dim": given.dim}):  # fmt: skip
            write_record(given.out / f"daily_updates-{given.name}.json", record)
            write_text(given.out / f"daily_updates-{given.name}.md", markdown(record))


if __name__ == "__main__":
    main()
