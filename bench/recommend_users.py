"""Everyone's recommendations: `plr recommend --users`, on generated users of a generated run.

    OMP_NUM_THREADS=1 python -m bench.recommend_users --users 100000

A run with random weights is written to a temporary folder, and files of its users: histories of 5 to 50 items as JSON
lines and as Parquet, and the same as interactions in CSV. Each is answered by the command in a process of its own,
whose CPU seconds the system reports, and which reads its largest resident memory from /proc (Linux) when it is done.
What loading takes is measured with a single user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from bench.inference import SYSTEMS, build
from bench.records import RESULTS, write_record
from plr.config import Config
from plr.runs import RunFolder
from plr_kernels import extension

SHORTEST, LONGEST, K = 5, 50, 10
FORMS = ("jsonl", "parquet", "csv")
# The system's own figure of a process that has ended begins with the memory of the one that started it.
PROGRAM = """
import sys
from plr.cli import main
status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
sys.exit(status)
"""


def write_run(folder: RunFolder, system: str, items: int, dim: int) -> None:
    """A finished run with random weights."""
    folder.path.mkdir()
    Config(**SYSTEMS[system], dim=dim, max_length=LONGEST, seed=1, data="generated", out=str(folder.path)).save(
        folder.config
    )
    folder.save_item_ids([f"item{item}" for item in range(items)])
    folder.save_popularity(torch.arange(items))
    save_file(build(system, items, dim).state_dict(), folder.weights)
    folder.metrics.write_text(json.dumps({"files": folder.hashes()}))


def write_users(folder: Path, users: int, items: int) -> None:
    """The same histories in every form."""
    random = np.random.default_rng(users)
    lengths = random.integers(SHORTEST, LONGEST + 1, users)
    ids = pl.Series("item", random.integers(0, items, int(lengths.sum())))
    names = ("item" + ids.cast(pl.String)).alias("item")
    user = ("u" + pl.Series(np.arange(users)).cast(pl.String)).alias("user")
    times = pl.Series("timestamp", np.arange(len(ids)))
    long = pl.DataFrame([user.gather(np.repeat(np.arange(users), lengths)), names, times])
    long.write_csv(folder / f"{users}.csv")
    wide = long.group_by("user", maintain_order=True).agg(pl.col("item").alias("history"))
    wide.write_parquet(folder / f"{users}.parquet")
    wide.write_ndjson(folder / f"{users}.jsonl")


def run_command(folder: Path, users: int, form: str) -> dict[str, float]:
    """Seconds, CPU seconds and the largest resident memory in MiB of the command."""
    command = ["recommend", str(folder / "run"), "--users", str(folder / f"{users}.{form}"), "-k", str(K)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command, "--out", str(folder / f"{form}.parquet")], stdout=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        lines = said.read().splitlines()
    if status:
        raise SystemExit(f"plr {' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": int(lines[-1]) / 1024,
    }


def _sizes(system: str) -> dict[str, Any]:
    """The options of a system that decide what an answer costs, as defaults were when it was measured."""
    config = Config(**SYSTEMS[system])
    names = ("layers",) if config.method == "base" else ("layers", "mixture", "streams", "steps")
    return {name: getattr(config, name) for name in names}


def main() -> None:
    """Measure, print, and write where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[100_000])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["sasrec", "plr"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    text = "what the record shall say of the machine and what else ran on it"
    parser.add_argument("--machine", default="", help=text)
    parser.add_argument("--record", action="store_true", help="write the result")
    parser.add_argument("--out", type=Path, default=RESULTS / "recommend_users.json", help="where to")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plr-bench-") as temporary:
        for system in options.systems:
            folder = Path(temporary) / system
            folder.mkdir()
            write_run(RunFolder(folder / "run"), system, options.items, options.dim)
            for users in (1, *options.users):
                write_users(folder, users, options.items)
            for form in options.forms:
                alone = run_command(folder, 1, form)
                for users in options.users:
                    found = run_command(folder, users, form)
                    answered = users / (found["cpu_seconds"] - alone["cpu_seconds"])
                    row = {"system": system, "form": form, "users": users, **found}
                    row |= {"users_per_cpu_second": answered, "alone": alone}
                    rows.append(row)
                    print(
                        f"{system} {form} {users:,} users: {answered:,.0f} users a CPU second, "
                        f"{found['seconds']:.1f} s, peak {found['peak_mib']:.0f} MiB "
                        f"(one user: {alone['seconds']:.1f} s, {alone['peak_mib']:.0f} MiB)",
                        flush=True,
                    )
    if options.record:
        record = {
            "command": f"python -m bench.recommend_users {' '.join(sys.argv[1:])}".strip(),
            "machine": options.machine,
            "instruction_set": extension.instruction_set(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "items": options.items,
            "dim": options.dim,
            "lengths": [SHORTEST, LONGEST],
            "k": K,
            "systems": {system: _sizes(system) for system in options.systems},
            "rows": rows,
        }
        write_record(options.out, record)


if __name__ == "__main__":
    main()
