"""SIGTERM and Ctrl-C: whatever they hit, the work ends with one and the same exception, and no write is cut in two."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from plr.errors import TERMINATED

__all__ = ["INTERRUPTED", "cleaned_up", "deferred", "heard", "raise_again", "status_of", "terminable"]

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as shells have it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 1.0  # seconds that a first signal has for the cleaning up, in which a second one changes nothing
_HAS_ALARM = hasattr(signal, "setitimer")  # not on Windows: there `raise_again` alone finds what was lost
_RETRY = 0.05  # seconds until the exception is raised once more, where it was raised in a destructor and lost


class _State:
    """What has come since `terminable` was entered; handlers are the process's, so there is one of it."""

    def __init__(self) -> None:
        self.depth = 0
        self.received: int | None = None
        self.since = 0.0
        self.taken: frozenset[int] = frozenset()  # the signals that are handled here
        self.waiting = 0  # those that came in the body of `deferred`


_state = _State()
_undone: dict[Any, Callable[[], None]] = {}


@contextmanager
def cleaned_up(work: Callable[[], None]) -> Iterator[None]:
    """Call `work` after the body, whatever ends it; it must bear to be called twice.

    A signal that came during a long call is heard by Python where the next function begins: in the `finally` or the
    `__exit__` that was to clean up. What that leaves undone is done where `terminable` ends.
    """
    key = object()
    _undone[key] = work
    try:
        yield
    finally:
        with deferred():
            work()
            _undone.pop(key, None)


def status_of(work: Callable[[], int], advice: Callable[[], str] = str) -> int:
    """Return what the work returns; or after a signal 130 or 143, with a line on stderr that ends with the advice."""
    try:
        with terminable():
            return work()
    except KeyboardInterrupt:
        word, status = "interrupted", INTERRUPTED
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        word, status = "terminated", TERMINATED
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes of a run one speaks
        with suppress(OSError):
            print(f"\nplr: {word}{advice()}", file=sys.stderr)
    return status


@contextmanager
def terminable() -> Iterator[None]:
    """End the body on SIGTERM with SystemExit(143), on SIGINT with KeyboardInterrupt, whatever the body makes of them.

    An exception that is raised anywhere comes out as another one where libraries call back from C++, or is lost in
    destructors. Here it is what the signal means; a second signal, a second later, ends the process at once. Signals
    that have a handler, or are ignored (nohup), keep that. May be nested; has no effect outside the main thread, which
    alone may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _state.depth:
        with _as_the_signal_says():
            yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    former: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    former = {number: handler for number, handler in former.items() if handler in usual}
    alarm, hook = signal.getsignal(signal.SIGALRM) if _HAS_ALARM else None, sys.unraisablehook
    _state.depth, _state.received, _state.taken = 1, None, frozenset(former)
    try:
        with _as_the_signal_says():
            if _HAS_ALARM:
                signal.signal(signal.SIGALRM, _retry)
                sys.unraisablehook = _unraisable(hook)
            for number in former:
                signal.signal(number, _handle)
            yield
    finally:
        if _HAS_ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        while _state.received is not None and _undone:  # nothing is raised any more
            with suppress(OSError):
                _undone.popitem()[1]()
        sys.unraisablehook = hook
        if _HAS_ALARM:
            former[signal.SIGALRM] = alarm
        for number, handler in former.items():
            signal.signal(number, handler)
        _state.depth, _state.received, _state.taken = 0, None, frozenset()


def raise_again() -> None:
    """Raise what a signal means, if one has come and its exception was lost on the way; called where work goes on."""
    if _state.received is not None and threading.current_thread() is threading.main_thread():
        raise _meaning(_state.received)


def heard(number: int) -> bool:
    """Whether Python has passed on a signal that has come, to what is done on it here, or it is not handled here."""
    return number not in _state.taken or _state.received is not None or _state.waiting > 0


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait until the body is over: for a short piece of work that must not be cut in two."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        waiting.append(number)
        _state.waiting += 1

    former = {number: signal.getsignal(number) for number in _SIGNALS}
    former = {number: handler for number, handler in former.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in former:
            signal.signal(number, note)
        yield
    finally:
        _restore(list(former.items()))
        for late in waiting:
            _state.waiting -= 1
            signal.raise_signal(late)


def _restore(handlers: list[tuple[int, Any]]) -> None:
    """Set all handlers, also where one that is set already raises meanwhile."""
    if handlers:
        number, handler = handlers[0]
        try:
            signal.signal(number, handler)
        finally:
            _restore(handlers[1:])


@contextmanager
def _as_the_signal_says() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if _state.received is None:
            raise
        meant = _meaning(_state.received)
        if type(error) is type(meant) and error.args == meant.args:
            raise
        raise meant from error


def _handle(number: int, _: FrameType | None) -> None:
    if _state.received is None:
        _state.received, _state.since = number, time.monotonic()
        raise _meaning(number)
    if time.monotonic() - _state.since > _PATIENCE:
        os._exit(128 + number)


def _retry(*_: Any) -> None:
    raise_again()


def _meaning(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(TERMINATED)


def _unraisable(hook: Any) -> Any:
    """Return a hook for exceptions that Python cannot pass on: that of a signal is raised once more, soon after."""

    def retry(unraisable: Any) -> None:
        if _state.received is not None and isinstance(unraisable.exc_value, (KeyboardInterrupt, SystemExit)):
            signal.setitimer(signal.ITIMER_REAL, _RETRY)
        else:
            hook(unraisable)

    return retry
