"""Where the processor time of `plr prepare` goes, stage by stage, and what reading item metadata costs.

    python -m bench.prepare_stages --rows 10000000 30000000 --items 1000000

The files are those of bench.prepare. Each size is a process of its own; its stages are timed by wrapping functions of
plr.prepare. What threads do beside the main one (hashing the file, numbering ids) is timed by the clock of their
threads and subtracted from the stage that waits for them. "polars" is `pl.read_csv` of the same file in another
process, without its imports. A file that is in the folder already is reused; those that are made stay.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import plr.cli.prepare
from bench.prepare import generate, measure, processor
from bench.records import RESULTS, write_record, write_text

STAGES = {
    "numbering ids, strings compared (threads)": [
        f"plr.prepare.readers.id_encoder:{kind}.numbers" for kind in ("IdEncoder", "CompiledIdEncoder")
    ],
    "hashing the source, checking that it is text (thread)": ["plr.prepare.sources:fingerprint"],
    "reading: parsing lines and numbers": ["plr.prepare.sources:read"],
    "ids sorted": ["plr.prepare.sources:number"],
    "filters": [
        "plr.prepare.interactions:Interactions.take",
        "plr.prepare.pipeline:min_interactions",
        "plr.prepare.pipeline:k_core",
    ],
    "numbers by rank, sorting by user and time": ["plr.prepare.interactions:in_user_order"],
    "default cuts (quantiles of time)": ["plr.prepare.pipeline:default_cuts"],
    "splitting": ["plr.prepare.pipeline:split_all"],
    "units of time, repeats, statistics": [
        "plr.prepare.sequences:_times",
        *(
            f"plr.prepare.pipeline:{name}"
            for name in ("_one_unit", "duplicates", "_single_interaction_users", "_size")
        ),
    ],
    "writing": ["plr.prepare.pipeline:save_prepared"],
    "hashing what was written (threads)": ["plr.prepare.folder:sha256_of"],
}
READ = """
import json, sys, time, polars
wall, processor = time.perf_counter(), time.process_time()
polars.read_csv(sys.argv[1])
print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]))
"""
METADATA = """
import json, sys, time
from pathlib import Path
import polars as pl
from plr.prepare import metadata
if sys.argv[3] == "line by line":
    metadata.plain_records = lambda lines, item_ids: None
items = pl.Series([f"B{number:09d}" for number in range(0, int(sys.argv[2]), 2)])
wall, processor = time.perf_counter(), time.process_time()
frame, counts = metadata.item_features(Path(sys.argv[1]), items)
assert counts["records"] == int(sys.argv[2]) and not frame["title"].null_count()
print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]))
"""


def stages(file: str, out: str) -> dict[str, Any]:
    """Prepare `file` in this process; returns the seconds of every stage, [wall, processor]."""
    seconds: dict[str, list[float]] = {}
    inside: list[list[float]] = []  # of the stages that are open: what stages within them took
    beside: Counter[str] = Counter()
    at_work: dict[int, float] = {}  # threads, and what the clock of each said when its stage began
    lock = threading.Lock()

    def took_beside() -> float:
        with lock:
            clocks = ((time.clock_gettime(time.pthread_getcpuclockid(each)), start) for each, start in at_work.items())
            return sum(beside.values()) + sum(now - start for now, start in clocks)

    def timed(stage: str, function: Any) -> Any:
        total = seconds.setdefault(stage, [0.0, 0.0])

        def run(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                with lock:
                    at_work[threading.get_ident()] = time.thread_time()
                try:
                    return function(*arguments, **options)
                finally:
                    with lock:
                        beside[stage] += time.thread_time() - at_work.pop(threading.get_ident())
            before = took_beside()
            inside.append([0.0, 0.0])
            wall, busy = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                took = [time.perf_counter() - wall, time.process_time() - busy]
                within = inside.pop()
                others = took_beside() - before
                total[0] += took[0] - within[0]
                total[1] += took[1] - within[1] - others
                if inside:
                    inside[-1][0] += took[0]
                    inside[-1][1] += took[1] - others

        return run

    for stage, names in STAGES.items():
        for name in names:
            module, _, path = name.partition(":")
            *owner, last = path.split(".")
            place = importlib.import_module(module)
            for part in owner:
                place = getattr(place, part)
            setattr(place, last, timed(stage, getattr(place, last)))
    timed("everything else", plr.cli.prepare.run)(plr.cli.prepare.Request(source=file, out=out))
    for stage, busy in beside.items():
        seconds[stage][1] += busy
    return seconds


def metadata_file(path: Path, items: int) -> None:
    """Write JSON lines like those of Amazon Reviews 2023, about 600 bytes each."""
    random = np.random.Generator(np.random.PCG64(0))
    words = np.array(["".join(letters) for letters in random.choice(list("abcdefghijklmnopqrstuvwxyz"), (5000, 6))])
    with open(path, "w", encoding="utf-8") as file:
        for number, drawn in enumerate(words[random.integers(0, len(words), (items, 40))]):
            record = {
                "main_category": "Books",
                "title": " ".join(drawn[:9]),
                "average_rating": 4.5,
                "features": [" ".join(drawn[9:20])],
                "description": [" ".join(drawn[20:35])],
                "price": 9.99 if number % 2 else None,
                "images": [{"large": f"https://example.org/{number}.jpg", "variant": "MAIN", "hi_res": None}],
                "store": drawn[35],
                "categories": ["Books", drawn[36], drawn[37]],
                "details": {"Publisher": drawn[38], "Language": drawn[39]},
                "parent_asin": f"B{number:09d}",
            }
            file.write(json.dumps(record) + "\n")


def printed(command: list[str]) -> Any:
    """Run a command and return the JSON on its last line."""
    return json.loads(measure(command, 1)["printed"].splitlines()[-1])


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    lines = []
    for result in record["results"]:
        read = result["polars_read"][1]
        total = [sum(column) for column in zip(*result["stages"].values(), strict=True)]
        lines += [
            f"{result['rows']:,} interactions, order: {result['order']}",
            "",
            "| stage | wall s | processor s | × polars |",
        ]
        lines += ["|---|---|---|---|", f"| polars: read_csv | {result['polars_read'][0]:.2f} | {read:.2f} | 1.0 |"]
        for stage, (wall, busy) in [*result["stages"].items(), ("together", total)]:
            lines.append(f"| {stage} | {wall:.2f} | {busy:.2f} | {busy / read:.2f} |")
        lines.append("")
    if record["metadata"]:
        lines += ["| item metadata, JSON lines | items | wall s | processor s |", "|---|---|---|---|"]
        for way, (wall, busy) in record["metadata"]["seconds"].items():
            lines.append(f"| {way} | {record['metadata']['items']:,} | {wall:.2f} | {busy:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--orders", nargs="+", choices=("time", "user"), default=["time", "user"])
    parser.add_argument("--items", type=int, default=0, help="number of metadata records; half of them are requested")
    parser.add_argument("--folder", type=Path, default=Path("bench-prepare"), help="for the generated files")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare_stages.json")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(stages(*arguments.one)))
        return
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    sizes = " ".join(map(str, arguments.rows))
    record: dict[str, Any] = {
        "command": f"python -m bench.prepare_stages --rows {sizes} --items {arguments.items}",
        "machine": processor(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "polars", "numpy")},
        "results": [],
        "metadata": {},
    }
    for rows in arguments.rows:
        for order in arguments.orders:
            file, out = folder / f"{order}-{rows}.csv", folder / f"stages-{order}-{rows}"
            if not file.exists():
                generate(file, rows, order)
            read = min((printed([sys.executable, "-c", READ, str(file)]) for _ in range(3)), key=lambda one: one[1])
            took = printed([sys.executable, "-m", "bench.prepare_stages", "--one", str(file), str(out)])
            shutil.rmtree(out)
            started = measure([sys.executable, "-c", "import gc; gc.disable(); import plr.cli; gc.freeze()"], 3)
            took = {"imports": [started["wall_seconds"], started["processor_seconds"]], **took}
            record["results"].append({"rows": rows, "order": order, "polars_read": read, "stages": took})
    if arguments.items:
        file = folder / f"meta-{arguments.items}.jsonl"
        metadata_file(file, arguments.items)
        ways = ("line by line", "by blocks, as it is done")
        command = [sys.executable, "-c", METADATA, str(file), str(arguments.items)]
        seconds = {way: min((printed([*command, way]) for _ in range(2)), key=lambda one: one[1]) for way in ways}
        record["metadata"] = {"items": arguments.items, "file_bytes": file.stat().st_size, "seconds": seconds}
    write_record(arguments.out, record)
    write_text(arguments.out.with_suffix(".md"), markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
