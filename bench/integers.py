"""The engine's ranking by one vector a row: 8-bit integers with certified bounds beside the sweep in float32, in turns.

    OMP_NUM_THREADS=1 python -m bench.integers --record

Both give the same bits, which every round checks. What is timed is the call of C++, by the thread's own time; a figure
is float32's time over that of the integers, round by round: above 1 the integers are faster. The table says, too, where
the engine takes them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.one_thread import OneThread, write_both
from bench.records import RESULTS, Spread
from plr_kernels import _cpp, extension

ANY_ROWS = 2**30


class Ranking:
    """A random table of V items, ranked in both ways."""

    def __init__(self, instruction_set: str, items: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = 3 * dim**-0.5 * torch.randn(items, dim, generator=generator)
        self.packed = _cpp.PackedItems(instruction_set, extension.as_matrix(self.table), True)

    def top(self, states: Tensor, k: int, by_integers: bool) -> tuple[Tensor, Tensor, int, float]:
        """Scores and numbers [R, k], how many items were scored in float32 after the integers, and seconds."""
        scores, numbers = torch.empty(len(states), k), torch.empty(len(states), k, dtype=torch.int64)
        matrix, rows = extension.as_matrix(states), ANY_ROWS if by_integers else 0
        begin = time.thread_time()
        _, rescored = self.packed.top(1, matrix, 0, 1, k, 1.0, 0, 0, 0, rows, scores.data_ptr(), numbers.data_ptr())
        return scores, numbers, rescored, time.thread_time() - begin


def case(ranking: Ranking, rows: int, k: int, seconds: float, least: int = 7) -> dict[str, Any]:
    """One line of the table."""
    generator = torch.Generator().manual_seed(rows)
    times: list[tuple[float, float]] = []
    rescored = 0
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        states = torch.randn(rows, ranking.table.shape[1], generator=generator)
        scores, numbers, _, by_float = ranking.top(states, k, by_integers=False)
        found, found_numbers, some, by_integers = ranking.top(states, k, by_integers=True)
        if not (torch.equal(scores, found) and torch.equal(numbers, found_numbers)):
            raise AssertionError(f"answers differ: V, d = {list(ranking.table.shape)}, {rows} rows, k = {k}")
        times.append((by_float, by_integers))
        rescored += some
    ratio = Spread.of([by_float / by_integers for by_float, by_integers in times])
    return {
        "items": ranking.table.shape[0],
        "dim": ranking.table.shape[1],
        "k": k,
        "rows": rows,
        "float32_us": 1e6 * Spread.of([by_float for by_float, _ in times]).median,
        "float32_over_integers": [ratio.low, ratio.median, ratio.high],
        "rescored_a_row": rescored / (rows * len(times)),
        "rounds": len(times),
        "taken": rows <= ranking.packed.quantized_states(k),
    }


def table(record: dict[str, Any]) -> str:
    """The record for readers."""
    lines = [
        "# Ranking by one vector a row, one thread: float32's time over that of 8-bit integers",
        "",
        f"`{record['command']}`. Median of the rounds (quartiles); load average {record['load'][0]:.1f} to "
        f"{record['load'][1]:.1f}. Taken: what the engine does.",
        "",
        "| set | V | d | k | rows | float32, µs | ratio | scored again, a row | taken |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cases in record["instruction_sets"].items():
        for row in cases:
            low, median, high = row["float32_over_integers"]
            cells = [
                name, f"{row['items']:,}", row["dim"], row["k"], row["rows"], f"{row['float32_us']:.0f}",
                f"{median:.2f} ({low:.2f}–{high:.2f})", f"{row['rescored_a_row']:.0f}", "yes" if row["taken"] else "no",
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and with --record write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[extension.instruction_set(), "avx2"])
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 87_969, 1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row, at least")
    parser.add_argument("--record", action="store_true", help="write the table")
    parser.add_argument("--out", type=Path, default=RESULTS / "integers.json")
    chosen = parser.parse_args(arguments)
    measurement = OneThread("bench.integers", arguments)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(chosen.sets)}
    for items in chosen.items:
        for dim in chosen.dims:
            for name, cases in results.items():
                ranking = Ranking(name, items, dim)
                for k in chosen.k:
                    for rows in chosen.rows:
                        cases.append(case(ranking, rows, k, chosen.seconds))
                        print(name, cases[-1], flush=True)
    record = measurement.record(instruction_sets=results)
    if chosen.record:
        write_both(chosen.out, record, table)
    print(table(record))


if __name__ == "__main__":
    main()
