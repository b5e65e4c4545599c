"""What `plr prepare` would take if hashing cost nothing: the most that another hash than SHA-256 could bring.

    python -m bench.prepare_hashing --rows 30000000 --repeats 5

Three processes take turns: polars' `read_csv` of the file, `plr prepare`, and `plr prepare` whose SHA-256, of the
source and of the files that are written, does nothing. Times are by the clock and of the processor, imports included;
ratios are of each round, so that what else the machine does disturbs both alike. A file that is in the folder already
is reused.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.prepare import POLARS, generate, measure, processor
from bench.records import RESULTS, write_record

UNHASHED = """
import hashlib, sys

class Nothing:
    def __init__(self, content=b""): pass
    def update(self, content): pass
    def hexdigest(self): return "0" * 64

hashlib.sha256 = Nothing
from plr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bench(rows: int, order: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Measure the three in turns; returns every run, and the median ratios to `read_csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    file, out = folder / f"{order}-{rows}.csv", folder / "prepared"
    if not file.exists():
        generate(file, rows, order)
    prepare = ["prepare", str(file), "--out", str(out)]
    ways = {
        "polars_read": [sys.executable, "-c", POLARS, str(file)],
        "plr_prepare": [sys.executable, "-m", "plr", *prepare],
        "plr_prepare_unhashed": [sys.executable, "-c", UNHASHED, *prepare],
    }
    runs: list[dict[str, list[float]]] = []
    for _ in range(repeats):
        taken = {name: measure(command, 1, out) for name, command in ways.items()}
        runs.append({name: [one["wall_seconds"], one["processor_seconds"]] for name, one in taken.items()})
        print(rows, order, runs[-1], flush=True)
    ratios = {
        name: {
            clock: sorted(run[name][at] / run["polars_read"][at] for run in runs)
            for at, clock in enumerate(("wall", "processor"))
        }
        for name in ("plr_prepare", "plr_prepare_unhashed")
    }
    medians = {name: {clock: statistics.median(of) for clock, of in each.items()} for name, each in ratios.items()}
    return {"rows": rows, "order": order, "runs": runs, "ratios": ratios, "medians": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--orders", nargs="+", choices=("time", "user"), default=["time", "user"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("bench-prepare"), help="for the generated files")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare_hashing.json")
    arguments = parser.parse_args()
    record = {
        "command": f"python -m bench.prepare_hashing --rows {' '.join(map(str, arguments.rows))} "
        f"--orders {' '.join(arguments.orders)} --repeats {arguments.repeats}",
        "machine": processor(),
        "cores": os.cpu_count(),
        "note": arguments.note,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("polars", "numpy")},
        "results": [
            bench(rows, order, arguments.folder, arguments.repeats)
            for rows in arguments.rows
            for order in arguments.orders
        ],
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main()
