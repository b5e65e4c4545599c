"""Pieces of work that are processes of their own, several at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from plr.signals import cleaned_up, raise_again

__all__ = ["Children", "begun", "last_words"]

Task = TypeVar("Task")
_LOOK = 0.2  # seconds between two looks at the processes


class Children(Generic[Task]):
    """How tasks begin and end; `run` takes them one after the other, so many at a time.

    Args:
        most: how many processes there are at a time.
        start: begins a task's process, or returns None where there is nothing to do for it.
        over: called with each task that is over and its exit status, None where there was nothing to do. What it
            raises ends the others.
        after: the task that has to be over before a task begins, or None; one that is not among them is over.
        watch: called with each task whose process goes on, again and again.
    """

    def __init__(
        self,
        most: int,
        start: Callable[[Task], subprocess.Popen[bytes] | None],
        over: Callable[[Task, int | None], None],
        *,
        after: Callable[[Task], Task | None] = lambda task: None,
        watch: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self._most, self._start, self._over, self._after, self._watch = most, start, over, after, watch
        self._running: dict[Task, subprocess.Popen[bytes]] = {}

    def run(self, tasks: Iterable[Task]) -> None:
        """Do all tasks; whatever ends this ends their processes, with SIGTERM, and waits for them."""
        waiting = list(tasks)
        with cleaned_up(self._stop):
            while waiting or self._running:
                raise_again()
                pending = {*waiting, *self._running}
                for task in [task for task in waiting if self._after(task) not in pending]:
                    if len(self._running) == self._most:
                        break
                    waiting.remove(task)
                    process = self._start(task)
                    if process is None:
                        self._over(task, None)
                    else:
                        self._running[task] = process
                time.sleep(_LOOK)
                for task, process in list(self._running.items()):
                    if process.poll() is None:
                        self._watch(task)
                    else:
                        del self._running[task]
                        self._over(task, process.returncode)

    def _stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait()


def begun(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m` with these arguments; what it says on stderr goes to the log."""
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=file)


def last_words(log: Path) -> str:
    """Return what a process said on stderr."""
    return log.read_text(encoding="utf-8", errors="replace").strip()
