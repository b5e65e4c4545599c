"""Measures the operators and their peers, and renders what was measured.

    python -m bench.report --run                             # all benchmarks -> bench/results/cpu.json, and the table
    python -m bench.report --run --sizes small --out FILE    # the small shapes only, to a file of one's own
    python -m bench.report FILE... --whole --plot speed.png  # files that --run or pytest --benchmark-json wrote

The table is Markdown, on standard output. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.plot import draw
from bench.records import RESULTS, ROUND_DIGITS, Report, ResultError, write_record

HERE = Path(__file__).parent
SIZES = {"all": "not tiny", "small": "not large and not tiny", "large": "large", "tiny": "tiny"}
_FINISHED = (0, 1, 5)  # pytest's status: all well; some failed; none of the file's were asked for
_ENDED = (2, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # from outside
HEADER = (
    "| operator | shape | pass | ours, ms | peer's time / ours: median (quartiles) | best peer / ours | ours / limit "
    "| extra memory, MB: ours, peers | rounds |\n|---|---|---|---|---|---|---|---|---|"
)


def table(report: Report, whole: bool) -> str:
    """Markdown; with `whole` only each case's last pass, which has all others in it."""
    lines = [f"{report.machine}.\n", HEADER]
    for case in report.cases:
        lines += [case.row(phase) for phase in (case.passes[-1:] if whole else case.passes)]
    notes = [f"- {case.operator}, {case.shape}: {note}." for case in report.cases for note in case.notes()]
    notes += [f"- {name}: not measured: {message}." for name, message in report.failed.items()]
    return "\n".join([*lines, "", *notes] if notes else lines)


def measure(target: Path, tests: Path, sizes: str = "all", rounds: int | None = None, beside: int = 0) -> None:
    """Run each file of benchmarks in a process of its own, beside so many others that compute, and write all results.

    They are written aside after every case, and moved to `target` when all have run: a case that fails is named among
    them, and takes no other along, also where it ends its process. What a run had measured when it was ended from
    outside stays where it was written.

    Raises:
        ResultError: nothing was measured, or the run came to no end; the message says what is left.
    """
    aside = target.with_suffix(f".partial{target.suffix}")
    aside.unlink(missing_ok=True)
    status = 0
    with tempfile.TemporaryDirectory(prefix="plr-bench-") as cache:
        for file in [tests] if tests.is_file() else sorted(tests.glob("test_*.py")):
            status = _measure_file(file, aside, cache, sizes, rounds, beside)
            if status in _ENDED:
                break
    measured = Report.read(aside) if aside.exists() else Report("", [])
    if not measured.cases:
        aside.unlink(missing_ok=True)
        reasons = "".join(f"\n{name}: {message}" for name, message in measured.failed.items())
        raise ResultError(f"pytest ended with status {status}, nothing was measured: {target} was not written{reasons}")
    if status in _ENDED:
        raise ResultError(
            f"pytest ended with status {status}: {target} was not written; what was measured before is in {aside}"
        )
    os.replace(aside, target)


def _measure_file(file: Path, aside: Path, cache: str, sizes: str, rounds: int | None, beside: int = 0) -> int:
    """Run a file of benchmarks, and add what it measures to what was written aside. Returns pytest's last status.

    Where a case ends the process it is named, and those behind it run in another one.
    """
    # A cache of its own: code that was compiled for another number of threads ends the process.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", "-q", "-m", SIZES[sizes]]
    command += ["--continue-on-collection-errors", f"--record={aside}", "--add"]
    command += [f"--beside={beside}", *([] if rounds is None else [f"--rounds={rounds}"])]
    while True:
        try:
            status = subprocess.run(command, stdout=sys.stderr, cwd=HERE.parent, env=environment).returncode
        except KeyboardInterrupt:
            status = 130
        if not aside.exists() or status in (*_ENDED, *_FINISHED):
            return status
        content = json.loads(aside.read_text(encoding="utf-8"))
        under_way = content.pop("under_way", None)
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        content["failed"][under_way or str(file)] = f"the process ended with {how}"
        write_record(aside, content, ROUND_DIGITS)
        if under_way is None:
            return status
        done = [benchmark["fullname"] for benchmark in content["benchmarks"]] + list(content["failed"])
        command += [f"--deselect={name}" for name in done]


def main(arguments: list[str] | None = None) -> None:
    """Measure if asked to, and print the tables; leaves with status 1 where a case could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--run", action="store_true", help="measure now, and render the result")
    parser.add_argument("--sizes", choices=SIZES, default="all", help="with --run: which shapes; `tiny` ones, not in "
                        "`all`, only show that everything runs")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="with --run: no more than these, to try the benchmarks")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="with --run: while N other programs compute")
    parser.add_argument("--tests", type=Path, default=HERE, help="with --run: a file of benchmarks; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="with --run: the result file")
    parser.add_argument("--whole", action="store_true", help="only forward and backward together")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the passes as a whole")
    options = parser.parse_args(arguments)
    if options.beside < 0:
        parser.error(f"--beside must be 0 or more, not {options.beside}")
    if options.run == bool(options.files):
        parser.error("give result files, or --run to measure")
    try:
        if options.run:
            measure(options.out.resolve(), options.tests.resolve(), options.sizes, options.rounds, options.beside)
        reports = [Report.read(path) for path in options.files or [options.out]]
    except ResultError as error:
        sys.exit(str(error))
    print("\n\n".join(table(report, options.whole) for report in reports))
    if options.plot:
        draw([case for report in reports for case in report.cases], options.plot)
    if options.run and reports[0].failed:
        sys.exit("not measured: " + ", ".join(reports[0].failed))


if __name__ == "__main__":
    main()
