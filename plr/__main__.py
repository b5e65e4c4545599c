"""`plr`, and `python -m plr`: the command line, begun without looking for garbage among modules."""

from __future__ import annotations

import signal
import sys

# Until the handlers are set, a Ctrl-C ends the process as the system does: with status 130 and no traceback of imports.
# Only where this is the program, and not where signals are ignored (nohup).
if (__name__ == "__main__" or sys.argv[0].endswith("/plr")) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import os
from contextlib import suppress

from plr.errors import TERMINATED
from plr.signals import INTERRUPTED, status_of


def main() -> int:
    """Run the command line; returns the exit status.

    After a signal the process ends here: what Python does at its end can say nothing of use any more, and a library
    that is half imported may fail in it.
    """
    status = status_of(_run)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # the command is over: no traceback of Python's end
    if status in (INTERRUPTED, TERMINATED):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def _run() -> int:
    # What modules are made of stays: to look through it again and again is a good part of the time of a short command.
    collecting = gc.isenabled()
    gc.disable()
    try:
        from plr.cli import main as run

        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
