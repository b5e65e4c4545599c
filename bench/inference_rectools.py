"""Answering: our SASRec beside RecTools', strings in and out, in turns.

    OMP_NUM_THREADS=1 python -m bench.inference_rectools --peer-python rectools-env/bin/python

rectools_epoch.py says how to make the peer's environment, and rectools_recommend.py, which runs there, what it does.
Both have random weights of the same shapes (two layers, two heads, feed-forward layers of the model's width), histories
of 50 of V items, which are texts, and return the ten best, seen ones included. RecTools gets a data set and returns a
frame of pandas; ours gets lists and returns lists of objects, or gets and returns a frame of polars with a row for each
interaction. RecTools' data set is ready before its call begins, or made in it ("construct"): in an application
histories change. The two processes, of one thread each, take turns; what is counted is each one's processor time, and
a figure is a ratio, round by round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.inference import LENGTH, K
from bench.one_thread import OneThread, write_both
from bench.records import RESULTS, Spread
from plr.config import Config
from plr.models import build_model
from plr.serving import Recommender

PEER = Path(__file__).with_name("rectools_recommend.py")
FORMS = ("recommend", "construct")
Ask = Callable[[str, int], float]
"""Lets the peer answer in a form for a number of users; its processor seconds."""


class PeerError(Exception):
    """The peer's process ended, or answered something else."""


@contextmanager
def peer(python: str, items: int, dim: int, users: list[int]) -> Iterator[tuple[dict[str, str], Ask]]:
    """The versions of a process of the peer that is ready, and what asks it."""
    command = [python, str(PEER), "--items", str(items), "--dim", str(dim), "--users", *map(str, users)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def read() -> dict[str, Any]:
        for line in process.stdout:  # type: ignore[union-attr]
            if line.startswith("{"):  # libraries print there, too
                return json.loads(line)
        raise PeerError(f"the peer ended with status {process.wait()}: {' '.join(command)}")

    def ask(form: str, count: int) -> float:
        process.stdin.write(f"{form} {count}\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        found = read()
        if found["rows"] != count * K:
            raise PeerError(f"the peer returned {found['rows']} rows for {count} users, not {count * K}")
        return found["seconds"]

    try:
        yield read(), ask
    finally:
        process.stdin.close()
        process.wait(60)


def our_recommender(items: int, dim: int) -> Recommender:
    """SASRec with random weights, of the peer's sizes."""
    sizes = {"dim": dim, "ffn_dim": dim, "heads": 2, "layers": 2, "max_length": LENGTH}
    config = Config(method="base", exclude_seen=False, seed=1, **sizes)
    return Recommender(build_model(config, items).eval(), [f"item{item}" for item in range(items)], config)


def seconds_of(call: Callable[[], Any]) -> float:
    """The processor seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def case(recommender: Recommender, ask: Ask, users: int, seconds: float, least: int = 7) -> dict[str, Any]:
    """One row of the table."""
    items = len(recommender.item_ids)
    numbers = np.random.default_rng(0).integers(0, items, (users, LENGTH))
    histories = [[f"item{item}" for item in row] for row in numbers]
    columns = {"user": np.repeat(np.arange(users), LENGTH), "item": [each for row in histories for each in row]}
    frame = pl.DataFrame(columns)
    calls: dict[str, Callable[[], float]] = {form: lambda form=form: ask(form, users) for form in FORMS}  # type: ignore[misc]
    calls["lists"] = lambda: seconds_of(lambda: recommender.recommend(histories, K))
    calls["frame"] = lambda: seconds_of(lambda: recommender.recommend_frame(frame, K))
    for call in calls.values():
        call()
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < least or time.perf_counter() < end:
        rounds.append({name: call() for name, call in calls.items()})
    row: dict[str, Any] = {"items": items, "dim": recommender.config.dim, "users": users, "rounds": len(rounds)}
    for name in calls:
        row[f"{name}_ms"] = 1e3 * Spread.of([each[name] for each in rounds]).median
    for form, ours in product(FORMS, ("lists", "frame")):
        ratio = Spread.of([each[form] / each[ours] for each in rounds])
        row[f"{form}_over_{ours}"] = [ratio.low, ratio.median, ratio.high]
    return row


def table(record: dict[str, Any]) -> str:
    """The record for readers."""
    lines = [
        f"# RecTools' time over ours, SASRec, one thread, {record['instruction_set']}",
        "",
        f"`{record['command']}`. Median of the rounds (quartiles); RecTools {record['peer']['rectools']} with torch "
        f"{record['peer']['torch']}, ours with {record['torch']}; load average {record['load'][0]:.1f} to "
        f"{record['load'][1]:.1f}.",
        "",
        "| V | d | users | RecTools, ms | with its data set, ms | ours, lists, ms | frame, ms | over lists "
        "| over a frame | with its data set, over lists | over a frame |",
        "|" + "---|" * 11,
    ]
    for row in record["rows"]:
        cells = [f"{row['items']:,}", row["dim"], row["users"]]
        cells += [f"{row[f'{name}_ms']:.{1 if row[f'{name}_ms'] < 100 else 0}f}" for name in (*FORMS, "lists", "frame")]
        for form, ours in product(FORMS, ("lists", "frame")):
            cells.append("{1:.1f} ({0:.1f}–{2:.1f})".format(*row[f"{form}_over_{ours}"]))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with RecTools")
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 87_969])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row, at least")
    parser.add_argument("--out", type=Path, default=RESULTS / "inference_rectools.json")
    chosen = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    shown = ["PYTHON" if each == chosen.peer_python else each for each in given]
    measurement = OneThread("bench.inference_rectools", shown)
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for items, dim in product(chosen.items, chosen.dims):
        recommender = our_recommender(items, dim)
        with peer(chosen.peer_python, items, dim, chosen.users) as (found, ask):
            versions = found
            for users in chosen.users:
                rows.append(case(recommender, ask, users, chosen.seconds))
                print(rows[-1], flush=True)
    record = measurement.record(peer=versions, rows=rows)
    write_both(chosen.out, record, table)
    print(table(record))


if __name__ == "__main__":
    main()
