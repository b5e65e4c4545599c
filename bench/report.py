"""Measures the operators and their peers, and renders what was measured.

    python -m bench.report --run                             # all benchmarks -> bench/results/cpu.json, and the table
    python -m bench.report --run --sizes small --out FILE    # the small shapes only, to a file of one's own
    python -m bench.report FILE... --whole --plot speed.png  # files that --run or pytest --benchmark-json wrote

The table is Markdown, on standard output. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import OURS
from plr.data.atomic import atomic_path

HERE = Path(__file__).parent
SIZES = {"all": [], "small": ["-m", "not large"], "large": ["-m", "large"]}
HEADER = (
    "| operator | shape | pass | ours, ms | peer's time / ours: median (quartiles) | best peer / ours | ours / limit "
    "| extra memory, MB: ours, peers | rounds |\n|---|---|---|---|---|---|---|---|---|"
)


class ResultError(ValueError):
    """A file that is no result of these benchmarks; the message names it and says what is wrong."""


@dataclass(frozen=True)
class Spread:
    """The median of the rounds and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of one value at least."""
        if len(values) == 1:
            return cls(*values * 3)
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


@dataclass(frozen=True)
class Case:
    """One benchmark: an operator at a shape.

    Attributes:
        operator, shape: what was measured.
        seconds: {rival: {pass: [seconds of every round]}}.
        extra_bytes: {rival: {pass: bytes}}, or None for a rival where it could not be measured.
        limit: unit, work and probes, as bench/limits.py records them; None where there is none.
        process_peak_bytes: {rival: bytes}, the peak of a whole process; empty where it was not measured.
        errors: {rival: number}, how far results are from exact ones; empty where only their agreement was checked.
        failed: {rival: message}, what could not be measured.
    """

    operator: str
    shape: str
    seconds: dict[str, dict[str, list[float]]]
    extra_bytes: dict[str, dict[str, int] | None]
    limit: dict[str, Any] | None
    process_peak_bytes: dict[str, int]
    errors: dict[str, float]
    failed: dict[str, str]

    @property
    def passes(self) -> list[str]:
        """Phases in order, and the whole, where there are several, last."""
        return list(self.seconds[OURS])

    @property
    def peers(self) -> list[str]:
        """All rivals but ours, in the order of the benchmark: the eager formula first."""
        return [name for name in self.seconds if name != OURS]

    def ratio(self, peer: str, phase: str) -> Spread:
        """The peer's time by ours, round by round; a slow peer has taken part in the first rounds only."""
        rounds = zip(self.seconds[peer][phase], self.seconds[OURS][phase], strict=False)
        return Spread.of([theirs / ours for theirs, ours in rounds])

    def ratio_to_limit(self, phase: str) -> Spread | None:
        """Our time by the limit's, which is the pass's work at the best rate of all probes and rounds; or None."""
        if self.limit is None:
            return None
        work = self.limit["work"]
        parts = [phase] if phase in work else [part for part in self.passes if part != phase]
        if not parts or not all(part in work for part in parts):
            return None
        least = sum(work[part] / self._best_rate(part) for part in parts)
        return Spread.of([seconds / least for seconds in self.seconds[OURS][phase]])

    def _best_rate(self, phase: str) -> float:
        probes = [probe for probe in self.limit["probes"].values() if probe["phase"] in (None, phase)]
        return max(probe["amount"] / min(probe["seconds"]) for probe in probes)

    def memory(self, phase: str) -> str:
        """Megabytes beside inputs and results: ours, then each peer's."""
        extra = [(self.extra_bytes[name] or {}).get(phase) for name in (OURS, *self.peers)]
        return ", ".join("–" if value is None else f"{value / 2**20:.0f}" for value in extra)

    def notes(self) -> list[str]:
        """What the table has no column for: the rates that the limit was taken from, peaks of whole processes."""
        notes = []
        if self.limit is not None:
            rates = ((name, probe["amount"] / min(probe["seconds"])) for name, probe in self.limit["probes"].items())
            unit = f"10⁹ {self.limit['unit']}/s"
            notes.append(f"best rates in {unit}: " + "; ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates))
        if self.process_peak_bytes:
            peaks = (f"{name} {peak / 2**20:.0f} MB" for name, peak in self.process_peak_bytes.items())
            notes.append("peak of a whole process: " + ", ".join(peaks))
        if self.errors:
            far = (f"{name} {error:.2g}" for name, error in self.errors.items())
            notes.append("largest difference from exact results, relative to the largest number: " + ", ".join(far))
        notes += [f"not measured: {name}: {message}" for name, message in self.failed.items()]
        return notes

    def row(self, phase: str) -> str:
        """A line of the table; the fastest peer first."""
        ratios = [(self.ratio(peer, phase), peer) for peer in self.peers if phase in self.seconds[peer]]
        ratios.sort(key=lambda pair: pair[0].median)
        ours = statistics.median(self.seconds[OURS][phase]) * 1e3
        cells = [
            self.operator,
            self.shape,
            phase,
            f"{ours:.4g}",
            "; ".join(f"{peer} {ratio}" for ratio, peer in ratios) or "–",
            f"**{ratios[0][0].median:.3g}**" if ratios else "–",
            str(self.ratio_to_limit(phase) or "–"),
            self.memory(phase),
            ", ".join(str(len(self.seconds[name].get(phase, []))) for name in (OURS, *self.peers)),
        ]
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Report:
    """One file: where it was measured, and its cases."""

    machine: str
    cases: list[Case]

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what pytest-benchmark wrote for the benchmarks in this folder, or bench.gpu.

        Raises:
            ResultError: the file cannot be read, or is none of theirs.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(_machine(content), [_case(benchmark) for benchmark in content["benchmarks"]])
        except OSError as error:
            raise ResultError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ResultError(f"{path}: not JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise ResultError(f"{path}: not written by these benchmarks: no {error}") from error

    def table(self, whole: bool) -> str:
        """Markdown; with `whole` only each case's last pass, which has all others in it."""
        lines = [f"{self.machine}.\n", HEADER]
        for case in self.cases:
            lines += [case.row(phase) for phase in (case.passes[-1:] if whole else case.passes)]
        notes = [f"- {case.operator}, {case.shape}: {note}." for case in self.cases for note in case.notes()]
        return "\n".join([*lines, "", *notes] if notes else lines)


def _machine(content: dict[str, Any]) -> str:
    machine, commit = content["machine_info"], content["commit_info"]
    state = f"{commit['id'][:7]}{', changed' if commit['dirty'] else ''}" if commit.get("id") else "unknown"
    if "gpu" in machine:
        chip = f"{machine['gpu']} ({machine['capability']}), Triton {machine['triton']}"
    else:
        chip = f"{machine['cpu']['brand_raw']} ({machine['cpu_capability']}), {machine['threads']} threads"
    versions = f"torch {machine['torch']}, Python {machine['python_version']}"
    return f"{chip}, {versions}, {content['datetime'][:10]}, commit {state}"


def _case(benchmark: dict[str, Any]) -> Case:
    info = benchmark["extra_info"]
    if OURS not in info["seconds"]:
        raise KeyError(OURS)
    return Case(
        operator=Path(benchmark["fullname"].split("::")[0]).stem.removeprefix("test_"),
        shape=benchmark["param"] or "",
        seconds=info["seconds"],
        extra_bytes=info["extra_bytes"],
        limit=info.get("limit"),
        process_peak_bytes=info.get("process_peak_bytes", {}),
        errors=info.get("errors", {}),
        failed=info.get("failed", {}),
    )


def measure(target: Path, tests: Path, options: list[str]) -> None:
    """Run the benchmarks in a process of their own and write their results; nothing is written when one fails."""
    with atomic_path(target) as aside:
        command = [sys.executable, "-m", "pytest", str(tests), "--benchmark-only", "-q", f"--benchmark-json={aside}"]
        done = subprocess.run([*command, *options], stdout=sys.stderr, cwd=HERE.parent)
        if done.returncode:
            raise ResultError(f"pytest ended with status {done.returncode}: {target} was not written")


def main(arguments: list[str] | None = None) -> None:
    """Measure if asked to, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--run", action="store_true", help="measure now, and render the result")
    parser.add_argument("--sizes", choices=SIZES, default="all", help="with --run: which shapes")
    parser.add_argument("--tests", type=Path, default=HERE, help="with --run: a file of benchmarks; by default all")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json", help="with --run: the result file")
    parser.add_argument("--whole", action="store_true", help="only forward and backward together")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the passes as a whole")
    options = parser.parse_args(arguments)
    if options.run == bool(options.files):
        parser.error("give result files, or --run to measure")
    try:
        if options.run:
            measure(options.out.resolve(), options.tests.resolve(), SIZES[options.sizes])
        reports = [Report.read(path) for path in options.files or [options.out]]
    except ResultError as error:
        sys.exit(str(error))
    print("\n\n".join(report.table(options.whole) for report in reports))
    if options.plot:
        from bench.plot import draw

        draw([case for report in reports for case in report.cases], options.plot)


if __name__ == "__main__":
    main()
