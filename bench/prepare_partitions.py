"""`plr prepare` in partitions on disk beside all in memory: peak memory, time, and whether the bytes are the same.

    python -m bench.prepare_partitions --rows 10000000 100000000 --partitions 8

The files are those of bench.prepare, each run a process of its own, measured as there (the system's count of the
largest resident memory, imports included). With --repeats the ways take turns; the record holds every run. A file that
is in the folder already is reused; those that are made stay.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.prepare import generate, measure, processor
from bench.records import RESULTS, write_record
from plr.files import sha256_of


def bench(
    rows: int, order: str, folder: Path, partitions: list[int], options: list[str], repeats: int
) -> dict[str, Any]:
    """Measure every number of partitions (0: all in memory) at one size; the folders' hashes must be equal."""
    folder.mkdir(parents=True, exist_ok=True)
    file, out = folder / f"{order}-{rows}.csv", folder / "prepared"
    if not file.exists():
        generate(file, rows, order)
    runs: list[dict[str, Any]] = []
    hashes: set[tuple[str, ...]] = set()
    for _ in range(repeats):
        for count in partitions:
            command = [sys.executable, "-m", "plr", "prepare", str(file), "--out", str(out)]
            run = measure([*command, "--partitions", str(count), *options], 1, out)
            run.pop("printed", None)
            run.pop("wall_seconds_of_all", None)
            if "failed" not in run:
                hashes.add(tuple(sha256_of(each) for each in sorted(out.iterdir())))
            runs.append({"partitions": count, **run})
            print(rows, order, *options, runs[-1], flush=True)
    size = sum(each.stat().st_size for each in out.iterdir())
    shutil.rmtree(out)
    if len(hashes) != 1:
        raise SystemExit("the folders differ")
    return {
        "rows": rows, "order": order, "options": " ".join(options), "file_bytes": file.stat().st_size,
        "prepared_bytes": size, "runs": runs,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--order", choices=("time", "user"), default="time")
    parser.add_argument("--partitions", type=int, nargs="+", default=[8])
    parser.add_argument("--whole", choices=("true", "false"), default="true", help="whether to prepare in memory, too")
    parser.add_argument("--options", default="", help="of plr prepare, such as '--core 5'")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("bench-prepare"), help="for the generated files")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare_partitions.json")
    arguments = parser.parse_args()
    counts = [*([0] if arguments.whole == "true" else []), *arguments.partitions]
    results = [
        bench(rows, arguments.order, arguments.folder, counts, arguments.options.split(), arguments.repeats)
        for rows in arguments.rows
    ]
    given = [f"--rows {' '.join(map(str, arguments.rows))}", f"--partitions {' '.join(map(str, arguments.partitions))}"]
    given += [f"--options '{arguments.options}'"] if arguments.options else []
    given += [f"--repeats {arguments.repeats}"] if arguments.repeats > 1 else []
    given += ["--whole false"] if arguments.whole == "false" else []
    record = {
        "command": f"python -m bench.prepare_partitions {' '.join(given)}",
        "machine": processor(),
        "cores": os.cpu_count(),
        "note": arguments.note,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("polars", "numpy", "safetensors")},
        "results": results,
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main()
