"""Time and memory of preparing, opening and batching data, beside polars' reading alone and pandas.

    python -m bench.prepare --rows 1000000 10000000 30000000 --pandas /path/to/python

Every measurement is a process of its own: wall time, processor time (user and system, less disturbed by others on the
machine) and the largest resident memory, imports included. The files are made by a seed: 28 characters a user id, 10 an
item id, popularity and activity skewed; either a log in time order, or user by user as Amazon's are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.records import RESULTS, write_record, write_text
from plr.files import atomic_path

CHUNK = 1_000_000

POLARS = "import sys, polars; polars.read_csv(sys.argv[1])"

POLARS_NUMBERS = """
import sys
import polars as pl
pl.read_csv(sys.argv[1], schema_overrides={"user_id": pl.Categorical, "parent_asin": pl.Categorical})
"""

PANDAS = """
import sys
import numpy as np, pandas as pd
frame = pd.read_csv(sys.argv[1], dtype={"user_id": "string", "parent_asin": "string"})
user, users = pd.factorize(frame["user_id"], sort=True)
item, items = pd.factorize(frame["parent_asin"], sort=True)
frame = pd.DataFrame({"user": user, "item": item, "time": frame["timestamp"]})
frame = frame.sort_values(["user", "time"], kind="stable", ignore_index=True)
valid, test = frame["time"].quantile([0.8, 0.9], interpolation="lower")
seen = frame.loc[frame["time"] < valid, ["item"]].drop_duplicates()
frame = frame.merge(seen, on="item", how="inner")
frame = frame.sort_values(["user", "time"], kind="stable", ignore_index=True)
place = frame.groupby("user").cumcount()
role = np.where(place == 0, 0, 1 + (frame["time"] >= valid).astype(int) + (frame["time"] >= test).astype(int))
np.savez(sys.argv[2], user=frame["user"], item=frame["item"], role=role)
"""

RECBOLE = """
import sys, warnings
warnings.simplefilter("ignore")
folder, sys.argv = sys.argv[1], sys.argv[:1]
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
config = Config(model="SASRec", dataset="atomic", config_dict={
    "data_path": folder, "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": 50,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
    "train_neg_sample_args": None, "use_gpu": False})
data_preparation(config, create_dataset(config))
"""

OPEN = """
import json, sys, time
from pathlib import Path
from plr.data import SequenceDataset, open_prepared
start = time.perf_counter()
dataset = open_prepared(Path(sys.argv[1]))
opened = time.perf_counter() - start
print(json.dumps({"open_seconds": opened, "interactions": len(dataset.items)}))
"""

BATCHES = """
import json, sys, time
from pathlib import Path
from plr.data import LengthGroupedBatches, SequenceDataset, open_prepared
start = time.perf_counter()
dataset = open_prepared(Path(sys.argv[1]))
rows = dataset.rows("train", 50)
batches = iter(LengthGroupedBatches(rows.lengths, 2048, shuffle=True))
rows.batch(next(batches))
first = time.perf_counter() - start
count = size = number = 0
start = time.perf_counter()
for index in batches:
    batch = rows.batch(index)
    count += len(batch)
    size += sum(getattr(batch, name).nbytes for name in ("item_ids", "lengths", "targets", "users"))
    number += 1
    if number == 300:
        break
seconds = time.perf_counter() - start
held = rows.stops.nbytes + rows.lengths.nbytes
print(json.dumps({"rows": len(rows), "first_batch_seconds": first, "rows_per_second": count / seconds,
                  "batch_bytes_per_row": size / count, "held_bytes_per_row": held / len(rows)}))
"""


def generate(path: Path, rows: int, order: str, seed: int = 0) -> None:
    """Write a CSV user_id,parent_asin,rating,timestamp (ms) in the order "time" or "user".

    There are a tenth as many users as rows, and a 60th as many items.
    """
    users, items = max(rows // 10, 10), max(rows // 60, 10)
    random = np.random.Generator(np.random.PCG64(seed))
    user_ids, item_ids = _ids(random, users, 26, "AG"), _ids(random, items, 8, "B0")
    start, span = 1_300_000_000_000, 370_000_000_000
    with atomic_path(path) as aside, open(aside, "wb") as file:
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            activity, popularity = random.random(count) ** 1.5, random.random(count) ** 3
            low, high = first / rows, (first + count) / rows
            if order == "time":
                user, time = activity, np.sort(random.uniform(low, high, count))
            else:
                user, time = np.sort(random.uniform(low, high, count)) ** 1.5, random.random(count)
                number = (user * users).astype(np.int64)
                time = time[np.lexsort((time, number))]
            frame = pl.DataFrame(
                {
                    "user_id": user_ids.gather((user * users).astype(np.int64)),
                    "parent_asin": item_ids.gather((popularity * items).astype(np.int64)),
                    "rating": random.integers(1, 6, count).astype(float),
                    "timestamp": start + (time * span).astype(np.int64),
                }
            )
            frame.write_csv(file, include_header=first == 0)


def _ids(random: np.random.Generator, count: int, letters: int, prefix: str) -> pl.Series:
    alphabet = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", dtype=np.uint8)
    text = np.ascontiguousarray(alphabet[random.integers(0, 32, (count, letters))]).view(f"S{letters}").ravel()
    return prefix + pl.Series(text).cast(pl.String)


WHAT = {
    "polars_read": "`read_csv`: all columns into memory, the ids as strings; it is what the others are compared with",
    "polars_numbers": "`read_csv` with the ids as `Categorical`: numbers in memory, nothing sorted, split or written",
    "plr_prepare": "reads, hashes, checks, numbers, sorts, splits, and writes a folder to train on",
    "pandas": "reads, numbers, sorts and splits as plr does, and writes the arrays; hashes and checks nothing",
    "recbole": "RecBole's preparation from its own format",
    "plr_open": "opens the folder that plr_prepare wrote",
    "plr_batches": "opens it and makes 300 batches of 2,048 rows",
}

LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, status], file)
"""


def measure(command: list[str], repeats: int, makes: Path | None = None) -> dict[str, Any]:
    """Run a command several times; returns the least wall and processor seconds, the memory and what it printed.

    The folder that it makes is removed before each time. A small process between starts it: the system counts the
    memory of the one that starts another as the other's.
    """
    runs, printed = [], ""
    with tempfile.TemporaryDirectory() as folder:
        usage = Path(folder) / "usage.json"
        for _ in range(repeats):
            if makes is not None:
                shutil.rmtree(makes, ignore_errors=True)
            launch = [sys.executable, "-S", "-E", "-c", LAUNCH, str(usage), *command]
            printed = subprocess.run(launch, stdout=subprocess.PIPE, env=_environment(), text=True, check=True).stdout
            runs.append(json.loads(usage.read_text()))
            if runs[-1][3]:
                return {"failed": os.waitstatus_to_exitcode(runs[-1][3])}
    return {
        "wall_seconds": min(run[0] for run in runs),
        "processor_seconds": min(run[1] for run in runs),
        "wall_seconds_of_all": [run[0] for run in runs],
        "peak_bytes": max(run[2] for run in runs),
        "printed": printed,
    }


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}


def atomic_file(file: Path, folder: Path) -> None:
    """Write the CSV as RecBole's atomic file."""
    (folder / "atomic").mkdir(parents=True, exist_ok=True)
    names = {"user_id": "user_id:token", "parent_asin": "item_id:token", "rating": "rating:float"}
    names["timestamp"] = "timestamp:float"
    table = pl.scan_csv(file).rename(names)
    table.sink_csv(folder / "atomic" / "atomic.inter", separator="\t")


def bench(
    rows: int, order: str, folder: Path, pandas: str | None, repeats: int, recbole: str | None = None
) -> dict[str, Any]:
    """Measure everything at one size and remove the files."""
    folder.mkdir(parents=True, exist_ok=True)
    file, out, arrays = folder / f"{order}-{rows}.csv", folder / f"prepared-{rows}", folder / f"pandas-{rows}.npz"
    generate(file, rows, order)
    python = sys.executable
    result: dict[str, Any] = {"rows": rows, "order": order, "file_bytes": file.stat().st_size}
    tasks = {
        "import_only": [python, "-c", "import gc; gc.disable(); import plr.cli; gc.freeze()"],
        "polars_read": [python, "-c", POLARS, str(file)],
        "polars_numbers": [python, "-c", POLARS_NUMBERS, str(file)],
        "plr_prepare": [python, "-m", "plr", "prepare", str(file), "--out", str(out)],
        "plr_open": [python, "-c", OPEN, str(out)],
        "plr_batches": [python, "-c", BATCHES, str(out)],
    }
    if pandas is not None:
        tasks["pandas"] = [pandas, "-c", PANDAS, str(file), str(arrays)]
    if recbole is not None:
        atomic_file(file, folder)
        tasks["recbole"] = [recbole, "-c", RECBOLE, str(folder)]
    for name, command in tasks.items():
        times = repeats if name in ("polars_read", "plr_prepare", "plr_open", "import_only") else 1
        result[name] = measure(command, times, out if name == "plr_prepare" else None)
        printed = result[name].pop("printed", "")
        if name in ("plr_open", "plr_batches") and printed:
            result[name].update(json.loads(printed))
        print(rows, order, name, result[name], flush=True)
    result["prepared_bytes"] = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    shutil.rmtree(folder / "atomic", ignore_errors=True)
    for path in (file, arrays):
        path.unlink(missing_ok=True)
    return result


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the table of a record."""
    lines = [
        "| interactions | order | | wall s | processor s | × polars (wall) | × polars (processor) | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        reference = result["polars_read"]["processor_seconds"]
        for name in WHAT:
            one = result.get(name)
            if one is None or "failed" in one:
                continue
            wall, busy = one["wall_seconds"], one["processor_seconds"]
            ratios = f"{wall / result['polars_read']['wall_seconds']:.1f} | {busy / reference:.1f}"
            lines.append(
                f"| {result['rows']:,} | {result['order']} | {name} | {wall:.2f} | {busy:.2f} | {ratios} "
                f"| {one['peak_bytes'] / 2**30:.2f} |"
            )
    lines += ["", "Whole processes, imports included:", ""]
    lines += [f"- {name}: {text}" for name, text in WHAT.items() if any(name in result for result in results)]
    lines += [
        "",
        "| interactions | open s | first batch s | rows/s | bytes a row in a batch | held for a row |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        batches, opened = result["plr_batches"], result["plr_open"]
        sizes = f"{batches['batch_bytes_per_row']:.0f} | {batches['held_bytes_per_row']:.0f}"
        lines.append(
            f"| {result['rows']:,} | {opened['open_seconds']:.4f} | {batches['first_batch_seconds']:.2f} "
            f"| {batches['rows_per_second']:,.0f} | {sizes} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--orders", nargs="+", choices=("time", "user"), default=["time", "user"])
    parser.add_argument("--folder", type=Path, default=Path("bench-prepare"), help="for the generated files")
    parser.add_argument("--pandas", default=None, help="a Python that has pandas")
    parser.add_argument("--recbole", default=None, help="a Python that has RecBole, for sizes that it survives")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each short measurement")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare.json")
    arguments = parser.parse_args()
    results = [
        bench(rows, order, arguments.folder, arguments.pandas, arguments.repeats, arguments.recbole)
        for rows in arguments.rows
        for order in arguments.orders
    ]
    record = {
        "command": " ".join(
            ["python -m bench.prepare --rows", *map(str, arguments.rows), "--orders", *arguments.orders]
        ),
        "machine": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "polars", "numpy", "safetensors")},
        "pandas": _version("pandas", arguments.pandas),
        "recbole": _version("recbole", arguments.recbole),
        "results": results,
    }
    write_record(arguments.out, record)
    write_text(arguments.out.with_suffix(".md"), markdown(results))
    print(markdown(results))


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str, python: str | None) -> str | None:
    if python is None:
        return None
    command = [python, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
