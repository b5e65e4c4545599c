"""Work that is needed in the end, done while others work."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_background"]

_NICE = 3  # of 19: where all cores are busy, half the share of another thread; what it leaves is done when they are not
_Result = TypeVar("_Result")


def in_background(function: Callable[[], _Result]) -> Future[_Result]:
    """Call ``function`` in a thread that leaves the cores to others first, where the system knows such threads.

    A process that ends does not wait for it.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        if sys.platform == "linux":  # elsewhere that is the whole process's
            with suppress(OSError):  # where it is forbidden, it works as all others
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(os.nice(0) + _NICE, 19))
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="plr-background", daemon=True).start()
    return future
