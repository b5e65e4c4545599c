"""Sessions: many answered together beside one after the other, and an appended item beside encoding the whole history.

    OMP_NUM_THREADS=1 python -m bench.sessions --record

Two sets of sessions with the same histories get the same new items. One is asked by one call of
`recommender.recommend_sessions`, the other session by session; they take turns in who is first, and answer the same
bits. Likewise the engine appends an item to a history of 40 to 49, and encodes the history anew. What is timed is the
thread's own time; a figure is a ratio, round by round.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.inference import LENGTH, SYSTEMS, K, build
from bench.one_thread import OneThread, write_both
from bench.records import RESULTS, Spread
from plr.config import Config
from plr.serving import Recommender, Session

SHORTEST = 10  # of the histories that sessions begin with
KEPT = 40
DEFAULT = ("sasrec", "plr")


def recommender_of(system: str, items: int, dim: int) -> Recommender:
    """A recommender with random weights whose items are called 0, 1, …"""
    config = Config(**SYSTEMS[system], dim=dim, max_length=LENGTH, seed=1)
    return Recommender(build(system, items, dim), list(map(str, range(items))), config)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begin = time.thread_time()
    found = call()
    return found, time.thread_time() - begin


def in_turns(first: Callable[[], Any], second: Callable[[], Any], number: int) -> tuple[float, float]:
    """Seconds of both, which are to return the same; in odd rounds the second goes first."""
    calls = [first, second] if number % 2 == 0 else [second, first]
    (found, seconds), (other, other_seconds) = map(timed, calls)
    if found != other:
        raise AssertionError(f"answers differ in round {number}")
    return (seconds, other_seconds) if number % 2 == 0 else (other_seconds, seconds)


def of_rounds(times: list[tuple[float, float]], names: tuple[str, str]) -> dict[str, Any]:
    """The quartiles of the ratios, and the medians in microseconds."""
    ratio = Spread.of([first / second for first, second in times])
    medians = {
        f"{name}_us": 1e6 * Spread.of([each[place] for each in times]).median for place, name in enumerate(names)
    }
    return {"ratio": [ratio.low, ratio.median, ratio.high], "rounds": len(times), **medians}


def together(recommender: Recommender, count: int, seconds: float, least: int = 7) -> dict[str, Any]:
    """Each round every session gets an item and is asked; sessions begin anew before they are full."""
    draw = random.Random(count)
    items = len(recommender.item_ids)
    times: list[tuple[float, float]] = []
    mine: list[Session] = []
    theirs: list[Session] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        if len(times) % 10 == 0:
            lengths = [draw.randint(SHORTEST, LENGTH - 10) for _ in range(count)]
            histories = [[str(draw.randrange(items)) for _ in range(length)] for length in lengths]
            mine, theirs = ([recommender.session(each) for each in histories] for _ in range(2))
            for sessions in (mine, theirs):
                recommender.recommend_sessions(sessions, K)
        for pair in zip(mine, theirs, strict=True):
            item = str(draw.randrange(items))
            for session in pair:
                session.append(item)
        times.append(
            in_turns(
                lambda mine=mine: recommender.recommend_sessions(mine, K),  # type: ignore[misc]
                lambda theirs=theirs: [session.recommend(K) for session in theirs],  # type: ignore[misc]
                len(times),
            )
        )
    return {"sessions": count, **of_rounds(times, ("together", "one_by_one"))}


def appended(recommender: Recommender, seconds: float, least: int = 70) -> dict[str, Any]:
    """The engine appends an item to what it keeps of a history, or encodes the history with it."""
    engine = recommender.engine
    assert engine is not None
    draw = random.Random(0)
    items = len(recommender.item_ids)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        history = torch.tensor([draw.randrange(items) for _ in range(LENGTH)])
        kept = engine.kept_history()
        kept.append(history[:KEPT])
        for length in range(KEPT + 1, LENGTH + 1):
            new, whole, offsets = history[length - 1 : length], history[:length], torch.tensor([0, length])
            calls = [lambda new=new, kept=kept: kept.append(new)]
            calls.append(lambda whole=whole, offsets=offsets: engine.states(whole, offsets))  # type: ignore[misc]
            order = slice(None, None, 1 if len(times) % 2 == 0 else -1)
            (found, first), (other, second) = map(timed, calls[order])
            if not torch.equal(found.states, other.states):
                raise AssertionError(f"states differ at {length} items")
            times.append((first, second) if order.step == 1 else (second, first))
    return of_rounds(times, ("append", "encode"))


def table(record: dict[str, Any]) -> str:
    """The record for readers."""
    lines = [
        f"# Sessions, one thread, {record['instruction_set']}: ratios of the thread's time",
        "",
        f"`{record['command']}`. Median of the rounds (quartiles); V {record['items']:,}, k {K}; load average "
        f"{record['load'][0]:.1f} to {record['load'][1]:.1f}. Together: one call for all sessions, each with a new "
        "item, over one after the other. Append: an item to a history of 40 to 49, over encoding it whole, without "
        "ranking.",
        "",
        "| system | d | what | sessions | µs | over, µs | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        low, median, high = row["ratio"]
        what, sessions, used, other = ("append", 1, row.get("append_us"), row.get("encode_us"))
        if "sessions" in row:
            what, sessions, used, other = "together", row["sessions"], row["together_us"], row["one_by_one_us"]
        cells = [row["system"], row["dim"], what, sessions, f"{used:.0f}", f"{other:.0f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{median:.2f} ({low:.2f}–{high:.2f})"])) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and with --record write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(DEFAULT))
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--sessions", type=int, nargs="+", default=[4, 32, 256])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row, at least")
    parser.add_argument("--record", action="store_true", help="write the table")
    parser.add_argument("--out", type=Path, default=RESULTS / "sessions.json")
    chosen = parser.parse_args(arguments)
    measurement = OneThread("bench.sessions", arguments)
    rows: list[dict[str, Any]] = []
    for system in chosen.systems:
        for dim in chosen.dims:
            recommender = recommender_of(system, chosen.items, dim)
            found = [appended(recommender, chosen.seconds)]
            found += [together(recommender, count, chosen.seconds) for count in chosen.sessions]
            for row in found:
                rows.append({"system": system, "dim": dim, **row})
                print(rows[-1], flush=True)
    record = measurement.record(items=chosen.items, rows=rows)
    if chosen.record:
        write_both(chosen.out, record, table)
    print(table(record))


if __name__ == "__main__":
    main()
