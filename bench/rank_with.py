"""Test rows of finished runs ranked with the model and with the engine: users a second, and ranks that differ.

    OMP_NUM_THREADS=1 python -m bench.rank_with RUN... --rounds 7

The two take turns in who is first. What is timed is the thread's own time, from the item table to the last rank; the
ratio is of a round's two. A run that the engine cannot take ends the command, with the reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.one_thread import OneThread, write_both
from bench.records import RESULTS, Spread
from plr.evaluation import Ranking, evaluation_batches, rank_rows
from plr.inputs import load_dataset
from plr.serving import Recommender
from plr.serving.engine import why_not
from plr.serving.engine_scorer import engine_scorer

AMONG_THE_FIRST = 20
SCORERS = {"model": None, "engine": engine_scorer}


def measured(path: Path, rounds: int) -> dict[str, Any]:
    """Rank a run's test rows by both, `rounds` times each after one that is not counted.

    Returns:
        The run's title, size and users, the quartiles of engine over model in users a second, the medians of both, how
        many ranks differ, by how much at most, and how many of these are among the first 20 by either.

    Raises:
        SystemExit: the engine cannot take the run.
        ConfigError, DataError, RunError: as `plr evaluate`.
    """
    recommender = Recommender.load(path)
    if (reason := why_not(recommender.model)) is not None:
        raise SystemExit(f"{path}: the engine cannot take it: {reason}")
    config = recommender.config
    rows = load_dataset(config, run=path).rows("test", config.max_length)

    def ranked(name: str) -> tuple[Ranking, float]:
        batches = evaluation_batches(rows, config.eval_batch_size, "cpu")
        begin = time.thread_time()
        found = rank_rows(
            recommender.model, batches, exclude_seen=bool(config.exclude_seen), scorer_of=SCORERS[name]
        )
        return found, time.thread_time() - begin

    ranks = {name: ranked(name)[0].ranks for name in SCORERS}
    differ = ranks["model"] != ranks["engine"]
    best = torch.minimum(ranks["model"], ranks["engine"])[differ]
    seconds: dict[str, list[float]] = {name: [] for name in SCORERS}
    for number in range(rounds):
        for name in list(SCORERS)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(ranked(name)[1])
    ratio = Spread.of([model / engine for model, engine in zip(seconds["model"], seconds["engine"], strict=True)])
    return {
        "system": config.title,
        "dim": config.dim,
        "items": len(recommender.item_ids),
        "users": len(rows),
        "faster": [ratio.low, ratio.median, ratio.high],
        **{f"{name}_users_a_second": len(rows) / Spread.of(each).median for name, each in seconds.items()},
        "ranks_that_differ": int(differ.sum()),
        "by_at_most": float((ranks["model"] - ranks["engine"]).abs().max()),
        "of_the_first": int((best <= AMONG_THE_FIRST).sum()),
    }


def table(record: dict[str, Any]) -> str:
    """The record for readers."""
    lines = [
        f"# Ranking test rows with the model and with the engine, one thread, {record['instruction_set']}",
        "",
        f"`{record['command']}`. Medians of {record['rounds']} rounds in turns (quartiles), the thread's time; load "
        f"average {record['load'][0]:.1f} to {record['load'][1]:.1f}. Ranks that differ: by how much at most, and how "
        f"many of them among the first {AMONG_THE_FIRST}.",
        "",
        "| system | d | items | users | model, users a second | engine, users a second | ratio | ranks that differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        low, median, high = row["faster"]
        cells = [row["system"], row["dim"], f"{row['items']:,}", f"{row['users']:,}"]
        cells += [f"{row[f'{name}_users_a_second']:,.0f}" for name in SCORERS]
        cells.append(f"{median:.2f} ({low:.2f}–{high:.2f})")
        cells.append(f"{row['ranks_that_differ']}, by {row['by_at_most']:g}, {row['of_the_first']}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write the table")
    parser.add_argument("--out", type=Path, default=RESULTS / "rank_with.json")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error(f"--rounds must be at least 1; found {chosen.rounds}")
    names = [run.name for run in chosen.runs]
    given = [each for each in (sys.argv[1:] if arguments is None else arguments) if Path(each) not in chosen.runs]
    measurement = OneThread("bench.rank_with", [*names, *given])
    rows = [measured(run, chosen.rounds) for run in chosen.runs]
    record = measurement.record(rounds=chosen.rounds, rows=rows)
    if chosen.record:
        write_both(chosen.out, record, table)
    print(table(record))


if __name__ == "__main__":
    main()
