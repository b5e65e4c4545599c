"""The parity tests of the "triton" backend on the chip, a process per operator, all at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OPERATORS = (
    "stream_attention",
    "pairwise_kl",
    "linear_cross_entropy",
    "info_nce",
    "mixture_cross_entropy",
    "consistent_mixture_cross_entropy",
    "candidate_cross_entropy",
    "candidate_mixture_cross_entropy",
    "top_items",
    "top_mixture_items",
    "target_rank",
    "target_mixture_rank",
    "forward_only",
    "user_states",
)
# Operators whose tests go by another's name.
TESTED_WITH = {"target_mixture_rank": "target_rank", "user_states": "forward_only"}


@dataclass(frozen=True)
class Verdict:
    """What one process of pytest said.

    Attributes:
        ok: whether there were tests and none failed.
        summary: pytest's last line.
        failed: the names of the tests that failed.
    """

    ok: bool
    summary: str
    failed: list[str]

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def selections(operators: tuple[str, ...]) -> dict[str, str]:
    """What pytest's -k is given: the tests of each operator, and of what they share."""
    others = " or ".join(OPERATORS)
    chosen = {name: f"triton-cuda and {TESTED_WITH.get(name, name)}" for name in operators}
    return {**chosen, "registration and all else": f"(triton-cuda or test_registration) and not ({others})"}


def check(operators: tuple[str, ...] = OPERATORS, target: str = "tests/plr_kernels") -> dict[str, Verdict]:
    """Run the tests and return each selection's verdict."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for number, (name, selection) in enumerate(selections(operators).items()):
            log = (Path(folder) / str(number)).open("w+", encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", target, "-k", selection]
            running[name] = (
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment),
                log,
            )
        verdicts = {}
        for name, (process, log) in running.items():
            with log:
                process.wait()
                log.seek(0)
                verdicts[name] = verdict(process.returncode, log.read())
            print(f"parity, {name}: {verdicts[name].summary}", file=sys.stderr, flush=True)
    return verdicts


def verdict(status: int, output: str) -> Verdict:
    """Read pytest's exit status and output; no test at all (status 5) is no success."""
    lines = output.strip().splitlines() or [f"pytest said nothing and ended with status {status}"]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    return Verdict(status == 0, lines[-1], failed)
