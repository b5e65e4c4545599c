"""`python -m bench.gpu`: parity, then times; see the package's docstring."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bench.gpu
from bench import report
from bench.failures import failure
from bench.gpu import parity
from bench.gpu.cases import CASES, Case, Sizes
from bench.gpu.timing import CudaClock, compare
from bench.records import RESULTS, ROUND_DIGITS, Report, write_record, write_text
from plr_kernels import use_backend

BACKEND = "triton"


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, write and render; leaves with status 1 where anything of ours failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=bench.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=CASES, default=list(CASES), metavar="OPERATOR", help="which operators: %(choices)s"
    )
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"), default=["bfloat16"])
    parser.add_argument("--batch", type=int, default=Sizes.batch, help="number of users; the paper's by default")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--skip-parity", action="store_true", help="time without running the tests first")
    parser.add_argument("--out", type=Path, help="the result file; by default bench/results/gpu-CHIP-DATE.json")
    parser.add_argument("--append", action="store_true", help="to what the file has, without running the tests")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs a GPU that torch can see; there is none.")
    chip = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    target = options.out or RESULTS / f"gpu-{chip}-{datetime.date.today()}.json"

    if options.append:
        content = json.loads(target.read_text(encoding="utf-8"))
    else:
        # A whole step needs all of them.
        tested = parity.OPERATORS if "training_step" in options.only else tuple(options.only)
        verdicts = {} if options.skip_parity else parity.check(tested)
        content = header({name: verdict.record() for name, verdict in verdicts.items()})
    wrong = [name for name, verdict in content["parity"].items() if not verdict["ok"]]
    clock, sizes = CudaClock(), Sizes(batch=options.batch)
    for number, operator in enumerate(options.only, start=1):
        if operator in wrong or (operator == "training_step" and wrong):
            print(f"{operator}: tests fail on this chip; not timed", file=sys.stderr)
            continue
        for name in options.dtypes:
            try:
                case = build(operator, sizes, getattr(torch, name))
                with use_backend(BACKEND):
                    entry = compare(case, clock, options.rounds)
            except Exception as error:
                wrong.append(f"{operator}, {name}: {failure(error)}")
                print(wrong[-1], file=sys.stderr, flush=True)
            else:
                content["benchmarks"].append(entry)
                write_record(target, content, ROUND_DIGITS)
                print(f"{entry['fullname']}: done", file=sys.stderr, flush=True)
            case = None
            clean()
        rest = options.only[number:]
        if rest and not is_usable():
            print("this process can use the GPU no more; another one goes on", file=sys.stderr, flush=True)
            write_record(target, content, ROUND_DIGITS)
            continued = go_on(rest, options, target)
            sys.exit("failed: " + "; ".join([*wrong, *(["more, named above"] if continued else [])]))
    write_record(target, content, ROUND_DIGITS)
    if content["benchmarks"]:
        report.main([str(target), "--plot", str(target.with_suffix(".png"))])
        write_text(target.with_suffix(".md"), report.table(Report.read(target), whole=False) + "\n")
    if wrong:
        sys.exit("failed: " + "; ".join(wrong))


def is_usable() -> bool:
    """Whether the GPU still takes work of this process: after an illegal access, or a failed assertion, it does not."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def go_on(operators: list[str], options: argparse.Namespace, target: Path) -> int:
    """Time the operators in a process of its own, into the same file; returns its exit status."""
    command = [sys.executable, "-m", "bench.gpu", "--only", *operators, "--dtypes", *options.dtypes]
    command += ["--batch", str(options.batch), "--rounds", str(options.rounds), "--out", str(target), "--append"]
    return subprocess.run(command, cwd=parity.ROOT, check=False).returncode


def clean() -> None:
    """Free what a case compiled and allocated, as far as that can be."""
    torch._dynamo.reset()
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:  # after a capture that was broken off, in older versions
        print(f"the GPU's memory is not cleared: {failure(error)}", file=sys.stderr, flush=True)


def build(operator: str, sizes: Sizes, dtype: torch.dtype) -> Case:
    """The case on the GPU, the same numbers every time."""
    torch.manual_seed(0)
    return CASES[operator](sizes, torch.device("cuda"), dtype)


def header(verdicts: dict[str, Any]) -> dict[str, Any]:
    """The result file without its benchmarks."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "machine_info": {
            "gpu": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "torch": torch.__version__,
            "triton": version("triton"),
            "cuda": torch.version.cuda,
            "python_version": platform.python_version(),
        },
        "commit_info": commit(),
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "parity": verdicts,
        "benchmarks": [],
    }


def commit() -> dict[str, Any]:
    """What git says of the source; nothing where there is no repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), capture_output=True, text=True, check=True, cwd=parity.ROOT
        ).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


if __name__ == "__main__":
    main()
