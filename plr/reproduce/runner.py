"""Training of the runs that are not finished, with what is left and how long it will take."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from plr.children import Children, begun, last_words
from plr.config import Config
from plr.durations import duration
from plr.errors import EvaluationError, NonFiniteLossError, NoReachableTargetError, RunError
from plr.evaluation import ranking_progress
from plr.reproduce.estimate import seconds_of_run
from plr.reproduce.study import Run, Study, System
from plr.runs import RunFolder
from plr.signals import raise_again
from plr.training import train

__all__ = ["START", "Progress", "duration", "estimates", "train_runs", "unfinished"]

Say = Callable[[str], None]
_OVERHEAD = 0.5  # seconds a run takes beside its epochs
START = 6.0
"""How many more it takes where it is a process of its own."""
_WITHOUT_RESULT = (NonFiniteLossError, EvaluationError, NoReachableTargetError)
"""How a run may end without a result that is no reason to end the others."""


def unfinished(study: Study, runs: Iterable[Run]) -> list[Run]:
    """Return the runs that are still to be trained, each once.

    Raises:
        RunError: a folder holds a run of another configuration.
    """
    return [run for run in dict.fromkeys(runs) if not study.finished(run)]


def estimates(study: Study, runs: Sequence[Run]) -> dict[Run, float]:
    """Return about how many seconds each run will take if none stops early; that of a system is measured once."""
    by_system: dict[System, float] = {}
    with _threads(study.config(runs[0]).threads if runs else 0):
        for run in runs:
            if run.system not in by_system:
                raise_again()
                seconds = seconds_of_run(study.config(run), study.dataset, study.folder(run))
                by_system[run.system] = seconds + (START if study.request.processes > 1 else _OVERHEAD)
    return {run: by_system[run.system] for run in runs}


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_runs(study: Study, runs: Sequence[Run], expected: dict[Run, float], say: Say) -> None:
    """Train the runs in their order, as many at a time as the request says; finished ones are a line each.

    A bar on a terminal moves with their epochs. A run whose loss becomes NaN or infinite is noted in `study.failed`, as
    is the second phase of one, or one that has no row to learn from, and the others go on.

    Raises:
        UserError: what makes a run impossible.
    """
    progress = Progress(len(runs), sum(expected.values()), say)
    left = {run: study.config(run).epochs for run in runs}

    shown = bool(runs) and sys.stdout.isatty()
    with ranking_progress("Training", sum(left.values()), shown=shown, unit="epochs") as advance:

        def epoch_over(run: Run) -> None:
            if left[run]:  # a refit has more
                left[run] -= 1
                advance(1)

        def over(run: Run, failed: str | None) -> None:
            if failed:
                study.failed[run] = failed
            advance(left[run])
            left[run] = 0
            progress.over(f"{run.name}: {failed or outcome(study.folder(run))}", expected[run])

        if study.request.processes > 1:
            _in_processes(study, runs, over, epoch_over)
            return
        for run in runs:
            raise_again()
            failed = _without_first_phase(study, run)
            try:
                if failed is None:
                    train(study.config(run), study.dataset, callbacks=_Epochs(partial(epoch_over, run)))
            except _WITHOUT_RESULT as error:
                failed = _why(error.status, str(error))
            over(run, failed)


def _why(status: int, message: str) -> str:
    """Return why a run has no result, by the exit status of what ended it and its message."""
    diverged = status != NoReachableTargetError.status
    return f"its loss became NaN or infinite ({message})" if diverged else message


class _Epochs(Callback):
    """Calls a function after every epoch."""

    def __init__(self, over: Callable[[], None]):
        self._over = over

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._over()


def _without_first_phase(study: Study, run: Run) -> str | None:
    """Return why a second phase cannot begin, where its first one has failed."""
    first = run.first_phase
    return None if first is None or first not in study.failed else f"{first.name} has no result"


class Progress:
    """Says what is over, what is left, and how long that will take, from the time that the former took.

    Args:
        count: of pieces of work.
        seconds: that all of them were expected to take.
        say: called with a line for each.
    """

    def __init__(self, count: int, seconds: float, say: Say):
        self._count, self._number = count, 0
        self._left, self._done, self._begun = seconds, 0.0, time.perf_counter()
        self._say = say

    def over(self, line: str, seconds: float) -> None:
        """Say that a piece is over, which was expected to take so many seconds."""
        self._number, self._left, self._done = self._number + 1, self._left - seconds, self._done + seconds
        left = f"{self._count - self._number} left"
        if self._number < self._count:
            spent = time.perf_counter() - self._begun
            left += f", about {duration(self._left * spent / self._done)}"
        self._say(f"[{self._number}/{self._count}] {line}; {left}")


def outcome(folder: RunFolder) -> str:
    """Return what a finished run measured, in a few words."""
    found = folder.read_metrics()
    return f"NDCG@10 {found['test']['ndcg@10']:.4f}, best epoch {found['best_epoch']} of {found['epochs']}"


def _in_processes(
    study: Study, runs: Sequence[Run], over: Callable[[Run, str | None], None], epoch_over: Callable[[Run], None]
) -> None:
    """Train each run by a `plr train` of its own; second phases wait for the first ones."""
    written: dict[Run, int] = {}
    plans = study.out / "plans"

    def start(run: Run) -> subprocess.Popen[bytes] | None:
        if _without_first_phase(study, run) is not None:
            return None
        written[run] = _written(study.folder(run))
        return _started(study.config(run), plans)

    def watch(run: Run) -> None:
        now = _written(study.folder(run))
        if now not in (0, written[run]):
            written[run] = now
            epoch_over(run)

    def ended(run: Run, status: int | None) -> None:
        failed = None
        if status is None:
            failed = _without_first_phase(study, run)
        elif status:
            said = last_words(_log(plans, run.name))
            if status not in {error.status for error in _WITHOUT_RESULT}:
                raise RunError(f"{run.name} ended with status {status}: {said[-1000:]}")
            failed = _why(status, said.splitlines()[-1].removeprefix("plr: ") if said else "")
        over(run, failed)

    Children(study.request.processes, start, ended, after=lambda run: run.first_phase, watch=watch).run(runs)


def _written(folder: RunFolder) -> int:
    """Return when the run's last epoch ended, in ns; 0 where none has, or all have."""
    try:
        return folder.resume_point.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _log(plans: Path, name: str) -> Path:
    return plans / f"{name}.log"


def _started(config: Config, plans: Path) -> subprocess.Popen[bytes]:
    name = Path(config.out).name
    plan = plans / f"{name}.yaml"
    config.save(plan)
    return begun(["plr", "train", "--config", str(plan)], _log(plans, name))
