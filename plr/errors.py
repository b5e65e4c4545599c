"""Every error that tells a user what to do: its message is enough, a traceback adds nothing."""

from __future__ import annotations

import os
import signal

__all__ = [
    "TERMINATED",
    "ConfigError",
    "DataError",
    "EvaluationError",
    "NonFiniteLossError",
    "RequestError",
    "RunError",
    "UserError",
]

TERMINATED = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as shells have it."""


class UserError(Exception):
    """What a user can mend; the command line prints the message alone."""


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
        self.reason = message
        place = "" if path is None else f"{self.path}: " if line is None else f"{self.path}:{line}: "
        super().__init__(place + message)


class RunError(UserError, RuntimeError):
    """A run folder that cannot be used as asked; the message names it and says what to do."""


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term became NaN or infinite; the message names the step, the term and what to try."""


class EvaluationError(UserError, ValueError):
    """What was to be ranked or measured cannot be: the message says where and what to check."""


class RequestError(UserError, ValueError):
    """What is asked for cannot be given: a history with an unknown item or with none, or too many recommendations."""
