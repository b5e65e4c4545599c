"""How long systems train until they rank as well as asked: epochs and processor time, from finished runs' logs.

    python -m bench.seconds_to_quality runs/sasrec-0 runs/sasrec-1 runs/plr-0 runs/plr-1

Runs are put together as `plr compare` does, the seeds of one system in a row. For each level of validation NDCG@10 (by
default 90 %, 95 % and 100 % of the worst best of the first system's runs, which all of its runs reach) it shows the
first epoch that has it, and the seconds that the epochs up to it took to train, without ranking: processor time of all
of the process's threads, or with --clock wall what passed. Processor time does not count what other programs take, but
on a busy machine it is longer too, where caches, memory and the two threads of a core are shared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.conftest import instruction_set
from bench.records import write_record, write_text
from plr.formats import rendered
from plr.reproduce.learning_curves import learning_curve
from plr.runs import RunFolder
from plr.serving.compare import compare_runs

SHARES = (0.9, 0.95, 1.0)
CLOCKS = {"processor": "train/processor_seconds", "wall": "train/seconds"}


def reached(run: RunFolder, level: float, clock: str) -> tuple[int, float] | None:
    """Return the first epoch, from 1, of a validation NDCG@10 of `level`, and the seconds up to it; None if none has.

    Raises:
        SystemExit: the run's log has no such seconds of some of the epochs.
    """
    curve, seconds = learning_curve(run), learning_curve(run, CLOCKS[clock])
    epoch = next((epoch for epoch in sorted(curve) if curve[epoch] >= level), None)
    if epoch is None:
        return None
    without = sorted(set(range(1, epoch + 1)) - set(seconds))
    if without:
        raise SystemExit(f"{run.path}: its log has no {CLOCKS[clock]} of epochs {without}; take --clock wall")
    return epoch, sum(seconds[each] for each in range(1, epoch + 1))


def default_levels(runs: Sequence[RunFolder]) -> list[float]:
    """Return what 90 %, 95 % and all of the worst of the runs' best NDCG@10 is."""
    worst = min(max(learning_curve(run).values()) for run in runs)
    return [share * worst for share in SHARES]


def measured(paths: Sequence[Path], levels: Sequence[float] | None, clock: str) -> dict[str, Any]:
    """Return of every system the best NDCG@10 of its runs and, by level, their epochs and seconds; None: not reached.

    Raises:
        ConfigError, RunError: the runs are not of two systems or more on the same rows.
    """
    systems = {each.name: [RunFolder(folder) for folder in each.folders] for each in compare_runs(paths)}
    levels = default_levels(next(iter(systems.values()))) if levels is None else levels
    return {
        name: {
            "best": [max(learning_curve(run).values()) for run in runs],
            "reached": {f"{level:.4f}": [reached(run, level, clock) for run in runs] for level in levels},
        }
        for name, runs in systems.items()
    }


def table(found: dict[str, Any]) -> list[list[str]]:
    """Return a header and a row of each system: means over runs, with the standard deviation where there are some."""
    levels = list(next(iter(found.values()))["reached"])
    rows = [["system", "runs", "best", *(f"{level}: {unit}" for level in levels for unit in ("epochs", "seconds"))]]
    for name, system in found.items():
        cells = [name, str(len(system["best"])), _mean(system["best"], 4)]
        for runs in system["reached"].values():
            there = [run for run in runs if run is not None]
            if len(there) < len(runs):
                cells += [f"{len(there)} of {len(runs)} runs", ""]
            else:
                cells += [_mean([epoch for epoch, _ in there], 1), _mean([seconds for _, seconds in there], 0)]
        rows.append(cells)
    return rows


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Read, print and, where asked, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of two systems or more on the same rows")
    parser.add_argument("--levels", nargs="+", type=float, help="validation NDCG@10")
    parser.add_argument("--clock", choices=CLOCKS, default="processor")
    parser.add_argument("--out", type=Path, help="a JSON file for the result; a table in Markdown beside it")
    arguments = parser.parse_args()
    found = measured(arguments.runs, arguments.levels, arguments.clock)
    note = f"First epoch of a validation NDCG@10, and {arguments.clock} seconds of training up to it; mean ± sd."
    print(rendered(table(found), note, "text"))
    if arguments.out is not None:
        record = {"clock": arguments.clock, "instruction_set": instruction_set(), "systems": found}
        write_record(arguments.out, record)
        write_text(arguments.out.with_suffix(".md"), rendered(table(found), note, "markdown"))


if __name__ == "__main__":
    main()
