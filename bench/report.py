"""Measures the operators and their peers, and renders what was measured.

    python -m bench.report --run                             # all benchmarks -> bench/results/cpu.json, and the table
    python -m bench.report --run --sizes small --out FILE    # the small shapes only, to a file of one's own
    python -m bench.report FILE... --whole --plot speed.png  # files that --run or pytest --benchmark-json wrote

The table is Markdown, on standard output. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.plot import draw
from bench.records import RESULTS, Report, ResultError

HERE = Path(__file__).parent
SIZES = {"all": "not tiny", "small": "not large and not tiny", "large": "large", "tiny": "tiny"}
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


def measure(target: Path, tests: Path, sizes: str = "all", rounds: int | None = None) -> None:
    """Run the benchmarks in a process of their own and write their results.

    They are written aside after every case, and moved to `target` when all have run: a case that fails is named among
    them, and takes no other along. What a run had measured when it was ended from outside stays where it was written.

    Raises:
        ResultError: nothing was measured, or the run came to no end; the message says what is left.
    """
    aside = target.with_suffix(f".partial{target.suffix}")
    aside.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(tests), "--benchmark-only", "-q", "-m", SIZES[sizes]]
    command += ["--continue-on-collection-errors", f"--record={aside}"]
    command += [] if rounds is None else [f"--rounds={rounds}"]
    try:
        status = subprocess.run(command, stdout=sys.stderr, cwd=HERE.parent).returncode
    except KeyboardInterrupt:
        status = 130
    measured = Report.read(aside) if aside.exists() else Report("", [])
    if not measured.cases:
        aside.unlink(missing_ok=True)
        reasons = "".join(f"\n{name}: {message}" for name, message in measured.failed.items())
        raise ResultError(f"pytest ended with status {status}, nothing was measured: {target} was not written{reasons}")
    if status not in (0, 1):  # 1: some cases failed
        raise ResultError(
            f"pytest ended with status {status}: {target} was not written; what was measured before is in {aside}"
        )
    os.replace(aside, target)


def main(arguments: list[str] | None = None) -> None:
    """Measure if asked to, and print the tables; leaves with status 1 where a case could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--run", action="store_true", help="measure now, and render the result")
    parser.add_argument("--sizes", choices=SIZES, default="all", help="with --run: which shapes; `tiny` ones, not in "
                        "`all`, only show that everything runs")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="with --run: no more than these, to try the benchmarks")
    parser.add_argument("--tests", type=Path, default=HERE, help="with --run: a file of benchmarks; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="with --run: the result file")
    parser.add_argument("--whole", action="store_true", help="only forward and backward together")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the passes as a whole")
    options = parser.parse_args(arguments)
    if options.run == bool(options.files):
        parser.error("give result files, or --run to measure")
    try:
        if options.run:
            measure(options.out.resolve(), options.tests.resolve(), options.sizes, options.rounds)
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
