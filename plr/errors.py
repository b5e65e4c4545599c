"""What can go wrong with a run."""

from __future__ import annotations

import signal

TERMINATED = 128 + signal.SIGTERM
"""The exit status after SIGTERM, as shells have it."""


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message names it and says what to do."""


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite; the message names the step, the term and what to try."""
