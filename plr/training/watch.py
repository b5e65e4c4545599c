"""Processes of one run end together, and soon after a signal, also where each waits for another in C++.

Python hears of a signal when the function of C++ that it is in returns. In a collective operation, or where processes
meet, that is when the others have come: for a process that has ended or hangs, after half an hour. A thread looks
instead. What a run writes is whole or not there, whenever it is ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import Popen, TimeoutExpired
from typing import Any

import lightning.pytorch as lightning

from plr import signals
from plr.errors import NonFiniteLossError, NoReachableTargetError, RunError, UserError
from plr.lock import process_is_gone
from plr.training.processes import is_leader

__all__ = ["keep_children", "watched"]

_LEADER = "PLR_LEADER"
"""The variable that tells a process which one, by its number, has started it."""

_GRACE = 5.0  # seconds that another process of the run has to end
_PATIENCE = 3.0  # seconds that the first one has to hear of a signal, or of another process that has ended
_PATIENCE_OF_OTHERS = 0.5  # seconds that others have, which write nothing and say nothing
_NOTICE = 2.0  # seconds until a process that no longer answers is seen to have ended
_LOOK = 0.2  # seconds between two looks
_RESUME = "repeat the command to resume after the last finished epoch"

_OF_USERS = (RunError.status, NonFiniteLossError.status, NoReachableTargetError.status)
"""Statuses of what users can mend, whose messages say how."""

_children: list[Popen[Any]] = []
"""What Lightning has started, for the whole program: a second run of it finds them there."""


_pipes: set[int] = set()
"""Where signals are told of at present: a descriptor, or none."""


def _in_a_fork() -> None:
    """Tell of a fork's signals nothing to the process that it is of."""
    if _pipes and threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_fork)


def keep_children(trainer: lightning.Trainer) -> None:
    """Have the processes that Lightning is about to start watched here, and not by its observer.

    That would kill this process, without a word, as soon as one of them has failed.
    """
    launcher: Any = trainer.strategy.launcher
    if launcher is None:  # they are there, or a launcher has started them
        return
    start = launcher._call_children_scripts

    def start_and_keep() -> None:
        os.environ[_LEADER] = str(os.getpid())
        try:
            start()
        finally:
            del os.environ[_LEADER]
            _children.extend(launcher.procs)
            launcher.procs = []

    launcher._call_children_scripts = start_and_keep


class _Leader:
    """The process that has started this one for a run; none where this is that, or a launcher has started it."""

    def __init__(self) -> None:
        self._number, self._parent = int(os.environ.get(_LEADER, "0")), os.getppid()

    def is_gone(self) -> bool:
        return bool(self._number) and (os.getppid() != self._parent or process_is_gone(self._number))


def _end_of_others(leader: _Leader, patience: float) -> RunError | None:
    """Return what tells of another process that has ended, or ends within so many seconds; None if none does."""
    end = time.monotonic() + patience
    while True:
        if leader.is_gone():
            return RunError("the first process of the run has ended")
        statuses = [status for status in (process.poll() for process in list(_children)) if status]
        if statuses:
            status, advice = statuses[0], f"; {_RESUME}"
            told = status in _OF_USERS
            error = RunError(
                f"another process of the run has ended with status {status}, as it says above{'' if told else advice}"
            )
            error.status = status if told else RunError.status  # a loss may be NaN in one process alone
            return error
        if time.monotonic() >= end:
            return None
        time.sleep(_LOOK)


def _end_children() -> None:
    """End the processes that were started."""
    started = list(_children)
    _children.clear()
    for process in started:
        with suppress(OSError):
            process.terminate()
    end = time.monotonic() + _GRACE
    for process in started:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except TimeoutExpired:  # it waits for another in a collective operation
            process.kill()
            process.wait()


@contextmanager
def watched(processes: int) -> Iterator[None]:
    """Look after a run of so many processes while the body trains it; if it fails, those started for it end first."""
    if processes == 1:
        yield
        return
    over, leader = threading.Event(), _Leader()
    with _signals_seen() as seen:
        thread = threading.Thread(target=_watch, args=(over, seen, leader), name="plr-watch", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            others = None
            if isinstance(error, Exception) and not isinstance(error, UserError):
                # What an operation of several processes raises may be for one of them, which is about to be gone.
                others = _end_of_others(leader, _NOTICE if isinstance(error, RuntimeError) else 0.0)
            _end_children()
            signals.raise_again()
            if others is not None:
                raise others from error
            raise
        finally:
            over.set()
            thread.join()


@contextmanager
def _signals_seen() -> Iterator[int | None]:
    """Yield a descriptor from which the numbers of signals can be read as they come; None where that cannot be had."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield None
        return
    seen, told = os.pipe()
    os.set_blocking(told, False)
    former = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    _pipes.add(told)
    try:
        yield seen
    finally:
        _pipes.discard(told)
        signal.set_wakeup_fd(former)
        os.close(seen)
        os.close(told)


def _watch(over: threading.Event, seen: int | None, leader: _Leader) -> None:
    signalled: tuple[int, float] | None = None  # which, and when it came
    failed: float | None = None  # when another process was found to have ended
    patience = _PATIENCE if is_leader() else _PATIENCE_OF_OTHERS
    while not over.wait(_LOOK):
        now = time.monotonic()
        number = _latest(seen)
        if number is not None and signalled is None:
            signalled = number, now
        if signalled is not None and signals.heard(signalled[0]):
            signalled = None
        if signalled is not None and now - signalled[1] > patience:
            word = "interrupted" if signalled[0] == signal.SIGINT else "terminated"
            _end(f"{word}; {_RESUME}", 128 + signalled[0])
        others = _end_of_others(leader, 0.0)
        failed = None if others is None else failed or now
        if others is not None and failed is not None and now - failed > patience:
            _end(str(others), others.status)


def _latest(seen: int | None) -> int | None:
    """Return the last of SIGINT and SIGTERM that has come since the last look."""
    if seen is None or not select.select([seen], [], [], 0)[0]:
        return None
    ours = [number for number in os.read(seen, 4096) if number in (signal.SIGINT, signal.SIGTERM)]
    return ours[-1] if ours else None


def _end(message: str, status: int) -> None:
    """End this process and those that it has started, whatever they are in."""
    for process in list(_children):
        with suppress(OSError):
            process.kill()
    if is_leader():
        with suppress(OSError):
            os.write(2, f"\nplr: {message}\n".encode())
    os._exit(status)
