"""Every error that tells a user what to do: its message is enough, a traceback adds nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

__all__ = [
    "TERMINATED",
    "ConfigError",
    "DataError",
    "EngineError",
    "EvaluationError",
    "NoReachableTargetError",
    "NonFiniteLossError",
    "RequestError",
    "RunError",
    "UserError",
    "listed",
    "out_of_memory",
    "shortened",
]

TERMINATED = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as shells have it."""


_LONGEST_MESSAGE = 1600
_LONGEST_VALUE = 100
_MOST_LISTED = 12


def shortened(value: object, longest: int = _LONGEST_VALUE) -> str:
    """Return ``repr(value)``, of a long text or value its beginning and its length: for values found in a file."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= longest:
        return repr(value)
    return f"{text[:longest]!r}… ({len(text):,} characters)"


def listed(values: Iterable[object]) -> str:
    """Return the values, quoted and parted by commas: a dozen at most, and how many more there are."""
    values = list(values)
    more = f" and {len(values) - _MOST_LISTED:,} more" if len(values) > _MOST_LISTED else ""
    return ", ".join(shortened(value) for value in values[:_MOST_LISTED]) + more


def out_of_memory(error: BaseException) -> str | None:
    """Return what was said first where the machine or the GPU has too little memory for what was asked, else None."""
    # PyTorch has no class for it on CPUs.
    said = ("can't allocate memory", "CUDA out of memory")
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in said):
        return None
    return (str(error).splitlines() or ["out of memory"])[0]


def _fit(message: str) -> str:
    """Return a message that is no longer than a screen and can be printed, whatever was found in a file."""
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{message[:half]} … ({len(message) - 2 * half:,} characters left out) … {message[-half:]}"


class UserError(Exception):
    """What a user can mend; the command line prints the message alone, which is never longer than a screen.

    ``status`` is what the command then ends with.
    """

    status = 2

    def __init__(self, message: str = "", *arguments: object) -> None:
        super().__init__(_fit(str(message)), *arguments)


class ConfigError(UserError, ValueError):
    """A configuration value that cannot work; the message names the field, what was found and what is accepted."""


class DataError(UserError, ValueError):
    """Input data that cannot be used: what is wrong, in which file, and on which line where there is one.

    ``path``, ``line`` (1-based, a header counts; the row number for Parquet) and ``reason`` (the message
    without its place) are also attributes.
    """

    def __init__(
        self,
        message: str,
        path: str | os.PathLike[str] | None = None,
        line: int | None = None,
    ) -> None:
        self.path = None if path is None else os.fspath(path)
        self.line = line
        self.reason = _fit(message)
        place = "" if path is None else f"{self.path}: " if line is None else f"{self.path}:{line}: "
        super().__init__(place + message)


class RunError(UserError, RuntimeError):
    """A run folder that cannot be used as asked; the message names it and says what to do."""


class NoReachableTargetError(RunError):
    """The first phase ranks no training row's target high enough for the second one to learn from; it says how high."""

    status = 4


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term became NaN or infinite; the message names the step, the term and what to try."""

    status = 3


class EvaluationError(UserError, ValueError):
    """A score that is not finite, so that nothing can be ranked: the message says where and what to check."""

    status = 3


class RequestError(UserError, ValueError):
    """What is asked for cannot be given: a history with an unknown item or with none, or too many recommendations."""


class EngineError(UserError, ValueError):
    """The inference engine cannot take a model."""
