"""The result files: how they are written, and what the benchmarks of operators put into them.

A file is JSON with a line for each thing that was measured, floats to a few significant digits: more would be noise.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plr.files import atomic_path

RESULTS = Path(__file__).parent / "results"
# The name under which the benchmarks record what is ours; all other names are peers.
OURS = "plr_kernels"
# Significant digits: of the seconds of every round, which vary by more, and of all else.
ROUND_DIGITS, DIGITS = 4, 6


class ResultError(ValueError):
    """A file that is no result of these benchmarks; the message names it and says what is wrong."""


def dumps(record: Mapping[str, Any], digits: int = DIGITS) -> str:
    """The text of a result file: a line per key, or per entry of a value that has lists or mappings in it.

    Args:
        record: what JSON can hold.
        digits: significant digits of floats.

    Raises:
        ValueError: a number is NaN or infinite; the message says where.
    """
    return _lines({name: _rounded(value, digits, name) for name, value in record.items()}, depth=0) + "\n"


def _lines(value: Any, depth: int) -> str:
    nested = isinstance(value, dict | list) and value and (depth == 0 or any(map(_is_container, _values(value))))
    if depth > 1 or not nested:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    indent = " " * (depth + 1)
    if isinstance(value, dict):
        entries = [f"{json.dumps(name, ensure_ascii=False)}: {_lines(each, depth + 1)}" for name, each in value.items()]
    else:
        entries = [_lines(each, depth + 1) for each in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n{indent}" + f",\n{indent}".join(entries) + f"\n{' ' * depth}{end}"


def _values(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list)


def _rounded(value: Any, digits: int, name: str) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; found {value}")
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(each, digits, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each, digits, f"{name}[{number}]") for number, each in enumerate(value)]
    return value


def write_record(path: Path, record: Mapping[str, Any], digits: int = DIGITS) -> None:
    """Write a result file, whole or not at all; see `dumps`."""
    write_text(path, dumps(record, digits))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Spread:
    """The median of the rounds and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
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
        seconds: {name: {pass: [seconds of every round]}}, of OURS and of every peer.
        extra_bytes: {name: {pass: bytes}}, or None where it could not be measured.
        limit: unit, work and probes, as bench/limits.py records them; None where there is none.
        process_peak_bytes: {name: bytes}, the peak of a whole process; empty where it was not measured.
        errors: {name: number}, how far results are from exact ones, None where they are not finite; empty where only
            their agreement was checked.
        failed: {name: message}, the peers and probes that could not run.
    """

    operator: str
    shape: str
    seconds: dict[str, dict[str, list[float]]]
    extra_bytes: dict[str, dict[str, int] | None]
    limit: dict[str, Any] | None
    process_peak_bytes: dict[str, int]
    errors: dict[str, float | None]
    failed: dict[str, str]

    @classmethod
    def of(cls, benchmark: Mapping[str, Any]) -> Case:
        """An entry of a result file.

        Raises:
            KeyError: it lacks something, which the error names.
        """
        info = benchmark["extra_info"]
        if OURS not in info["seconds"]:
            raise KeyError(OURS)
        return cls(
            operator=_operator(benchmark["fullname"]),
            shape=benchmark["param"] or "",
            seconds=info["seconds"],
            extra_bytes=info["extra_bytes"],
            limit=info.get("limit"),
            process_peak_bytes=info.get("process_peak_bytes", {}),
            errors=info.get("errors", {}),
            failed=info.get("failed", {}),
        )

    @property
    def passes(self) -> list[str]:
        """Phases in order, and the whole, where there are several, last."""
        return list(self.seconds[OURS])

    @property
    def peers(self) -> list[str]:
        """All but ours, in the order of the benchmark: the eager formula first."""
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
        rates = {part: _best_rate(self.limit["probes"], part) for part in parts}
        if not parts or not all(part in work and rates[part] for part in parts):
            return None
        least = sum(work[part] / rates[part] for part in parts)
        return Spread.of([seconds / least for seconds in self.seconds[OURS][phase]])

    def memory(self, phase: str) -> str:
        """Megabytes beside inputs and results: ours, then each peer's."""
        extra = [(self.extra_bytes[name] or {}).get(phase) for name in (OURS, *self.peers)]
        return ", ".join("–" if value is None else f"{value / 2**20:.0f}" for value in extra)

    def notes(self) -> list[str]:
        """What the table has no column for: the rates that the limit was taken from, peaks of whole processes."""
        notes = []
        if self.limit is not None and self.limit["probes"]:
            rates = ((name, probe["amount"] / min(probe["seconds"])) for name, probe in self.limit["probes"].items())
            unit = f"10⁹ {self.limit['unit']}/s"
            notes.append(f"best rates in {unit}: " + "; ".join(f"{name} {rate / 1e9:.3g}" for name, rate in rates))
        if self.process_peak_bytes:
            peaks = (f"{name} {peak / 2**20:.0f} MB" for name, peak in self.process_peak_bytes.items())
            notes.append("peak of a whole process: " + ", ".join(peaks))
        if self.errors:
            far = (f"{name} {'not finite' if error is None else f'{error:.2g}'}" for name, error in self.errors.items())
            notes.append("largest difference from exact results, relative to the largest number: " + ", ".join(far))
        return notes + [f"not measured: {name}: {message}" for name, message in self.failed.items()]

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


def _best_rate(probes: dict[str, Any], phase: str) -> float:
    """Of the probes that are like the phase; 0 where none of them could run."""
    alike = [probe for probe in probes.values() if probe["phase"] in (None, phase)]
    return max((probe["amount"] / min(probe["seconds"]) for probe in alike), default=0.0)


def _operator(fullname: str) -> str:
    """The operator of `bench/test_OPERATOR.py::test[shape]`, and of `OPERATOR::shape`."""
    return Path(fullname.split("::")[0]).stem.removeprefix("test_")


@dataclass(frozen=True)
class Report:
    """One file: where it was measured, its cases, and {fullname: message} of the cases that could not be measured."""

    machine: str
    cases: list[Case]
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what these benchmarks or bench.gpu recorded, or pytest-benchmark of these benchmarks.

        Raises:
            ResultError: the file cannot be read, or is none of theirs.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(_machine(content), [*map(Case.of, content["benchmarks"])], content.get("failed", {}))
        except OSError as error:
            raise ResultError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ResultError(f"{path}: not JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise ResultError(f"{path}: not written by these benchmarks: no {error}") from error


def _machine(content: dict[str, Any]) -> str:
    machine, commit = content["machine_info"], content["commit_info"]
    state = f"{commit['id'][:7]}{', changed' if commit['dirty'] else ''}" if commit.get("id") else "unknown"
    torch = f"torch {machine['torch']}"
    if "gpu" in machine:
        chip = f"{machine['gpu']} ({machine['capability']}), Triton {machine['triton']}"
    else:
        chip = f"{machine['cpu']['brand_raw']}, {machine['threads']} threads"
        torch += f" ({machine['cpu_capability']})"
    ours = f", {OURS} ({machine['instruction_set']})" if "instruction_set" in machine else ""
    settings = "".join(f", {name}={value}" for name, value in machine.get("settings", {}).items())
    beside = f", other programs that compute beside it: {machine['beside']}" if machine.get("beside") else ""
    python = f"Python {machine['python_version']}"
    return f"{chip}{beside}, {torch}{ours}, {python}{settings}, {content['datetime'][:10]}, commit {state}"
