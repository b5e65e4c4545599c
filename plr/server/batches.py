"""One thread that computes, and the bounded queue before it: what waits is answered together."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from plr.server.metrics import Counters

__all__ = ["Batches", "GoneError", "QueueFullError", "TooLateError", "as_failure"]


class QueueFullError(Exception):
    """More users wait than may."""


class GoneError(Exception):
    """Nobody waits for the answer any more."""


class TooLateError(Exception):
    """The time is over; `started` says whether the answer was being computed."""

    def __init__(self, started: bool) -> None:
        super().__init__()
        self.started = started


@dataclass(eq=False)
class _Job:
    group: Hashable
    request: Any
    users: int
    future: asyncio.Future[Any]
    started: bool = False
    dropped: bool = False


class Batches:
    """Answers requests in a thread of its own, several at once where several of one group wait. Never waits for more.

    Args:
        answer: takes a group and requests of it; returns an answer for each, or the error that it ends with. Where it
            raises an error for several requests, each of them is asked alone, so that an error is that of one.
        queue: the most users that may be in here.
        batch: the most users that are answered at once; a request of more is answered alone.
        counters: where batches and the queue's length are counted.
    """

    def __init__(
        self, answer: Callable[[Any, list[Any]], Sequence[Any]], *, queue: int, batch: int, counters: Counters
    ) -> None:
        self._answer, self._counters = answer, counters
        self._queue, self._batch = queue, batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._users = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that gets the answers; None before the first start."""
        return self._loop

    def start(self) -> None:
        """Start the thread, whose answers go to the running loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # of the jobs of another one, which may have ended, nobody hears any more
            self._loop, self._users = loop, 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="plr-answers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread when it has answered what waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    async def submit(
        self, group: Hashable, request: Any, users: int, seconds: float, gone: asyncio.Future[Any] | None = None
    ) -> Any:
        """Return the answer to a request.

        Args:
            group, request: as `answer` takes them.
            users: how many the request is for.
            seconds: how long the answer is waited for.
            gone: done when nobody waits for it any more.

        Raises:
            GoneError, QueueFullError, TooLateError: there is none. What `answer` raises.
        """
        assert self._loop is not None
        if self._users + users > self._queue:
            raise QueueFullError
        job = _Job(group, request, users, self._loop.create_future())
        self._count(users)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        try:
            awaited = [job.future] if gone is None else [job.future, gone]
            await asyncio.wait(awaited, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if not job.future.done():
                raise GoneError if gone is not None and gone.done() else TooLateError(job.started)
        finally:
            self._drop(job)
        return job.future.result()

    def _drop(self, job: _Job) -> None:
        """Leave a job to nobody; one that still waits leaves its place to others at once."""
        with self._changed:
            job.dropped = True
            waits = not job.started and job in self._jobs
            if waits:
                self._jobs.remove(job)
        if waits:
            self._count(-job.users)

    def _count(self, users: int) -> None:
        self._users += users
        self._counters.queue(self._users)

    def _take(self) -> list[_Job]:
        """Remove the first job and others of its group, as many as go together, in their order."""
        first = self._jobs.popleft()
        taken, users, others = [first], first.users, deque[_Job]()
        while self._jobs and users < self._batch:
            job = self._jobs.popleft()
            if job.group == first.group and users + job.users <= self._batch:
                taken.append(job)
                users += job.users
            else:
                others.append(job)
        self._jobs.extendleft(reversed(others))
        for job in taken:
            job.started = True
        return taken

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopped)
                if not self._jobs:
                    return
                taken = self._take()
            answers = self._answers(taken)
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._deliver, taken, answers)

    def _answers(self, jobs: list[_Job]) -> Sequence[Any]:
        try:
            return self._answer(jobs[0].group, [job.request for job in jobs])
        except BaseException as error:  # a panic of a library in Rust, too: this thread must not end
            if len(jobs) == 1:
                return [as_failure(error)]
        return [answer for job in jobs for answer in self._answers([job])]

    def _deliver(self, jobs: list[_Job], answers: Sequence[Any]) -> None:
        users = sum(job.users for job in jobs)
        self._count(-users)
        self._counters.batch(users)
        for job, answer in zip(jobs, answers, strict=True):
            if job.future.done():
                continue
            if not isinstance(answer, Exception):
                job.future.set_result(answer)
            elif not job.dropped:  # else nobody would ever ask for it
                job.future.set_exception(answer)


def as_failure(error: BaseException) -> Exception:
    """Return the error, or one in its place where no future takes it or it would end the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
