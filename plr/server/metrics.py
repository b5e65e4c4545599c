"""What the server counts, in memory that all its processes share, and its text for Prometheus."""

from __future__ import annotations

import mmap
import os
import tempfile
from bisect import bisect_left
from typing import Any

__all__ = ["Counters", "MetricsMemory"]

PATHS = ("/recommend", "/similar", "/health", "/ready", "/metrics", "/openapi.json", "/reload", "other")
STATUSES = (200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 499, 500, 503, 504)
TIMED = ("/recommend", "/similar")
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Every number that is kept, by its name and labels, in the order of a row of the memory.
_REQUESTS = [("plr_requests_total", f'path="{path}",status="{status}"') for path in PATHS for status in STATUSES]
_BUCKETS = [
    ("plr_request_seconds_bucket", f'path="{path}",le="{bound}"') for path in TIMED for bound in (*BOUNDS, "+Inf")
]
_SUMS = [("plr_request_seconds_sum", f'path="{path}"') for path in TIMED]
_OTHERS = [
    ("plr_users_total", ""),
    ("plr_batches_total", ""),
    ("plr_queue_users", ""),
    ("plr_reloads_total", 'outcome="loaded"'),
    ("plr_reloads_total", 'outcome="refused"'),
    ("plr_worker_starts_total", ""),
    ("plr_sessions", ""),
    ("plr_sessions_bytes", ""),
]
_PLACES = {key: place for place, key in enumerate([*_REQUESTS, *_BUCKETS, *_SUMS, *_OTHERS])}
_WIDTH = len(_PLACES)
_HELP = {
    "plr_requests_total": ("counter", "Requests answered, by path and status."),
    "plr_request_seconds": ("histogram", "Seconds from a request's head to its answer."),
    "plr_users_total": ("counter", "Histories answered."),
    "plr_batches_total": ("counter", "Calls of the model: several requests that wait are answered by one."),
    "plr_queue_users": ("gauge", "Histories that wait or are being answered."),
    "plr_reloads_total": ("counter", "Runs loaded beside the one that was served, by what came of it."),
    "plr_worker_starts_total": ("counter", "Workers started."),
    "plr_sessions": ("gauge", "Sessions that are kept."),
    "plr_sessions_bytes": ("gauge", "Memory that they are taken to need, what --session_memory bounds."),
}


class MetricsMemory:
    """Rows of float64, one for each process that counts; each writes its own and reads them all.

    Args:
        rows: how many.
        descriptor: that of another process; None: a new file, which has no name and ends with its processes.
    """

    def __init__(self, rows: int, descriptor: int | None = None) -> None:
        size = rows * _WIDTH * 8
        if descriptor is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(size)
                descriptor = os.dup(file.fileno())
        self.rows, self.descriptor = rows, descriptor
        self._cells: Any = memoryview(mmap.mmap(descriptor, size)).cast("d")

    def counters(self, row: int) -> Counters:
        """Return those of one process."""
        return Counters(self._cells[row * _WIDTH : (row + 1) * _WIDTH])

    def text(self) -> str:
        """Return the sums of all rows in Prometheus' text format, version 0.0.4."""
        sums = [sum(self._cells[place :: _WIDTH]) for place in range(_WIDTH)]
        lines: list[str] = []

        def add(family: str, name: str, labels: str, value: float) -> None:
            if f"# TYPE {family} {_HELP[family][0]}" not in lines:
                lines.extend([f"# HELP {family} {_HELP[family][1]}", f"# TYPE {family} {_HELP[family][0]}"])
            lines.append(f"{name}{{{labels}}} {value!r}" if labels else f"{name} {value!r}")

        for name, labels in _REQUESTS:
            if value := sums[_PLACES[name, labels]]:
                add(name, name, labels, value)
        family = "plr_request_seconds"
        for path in TIMED:
            count = 0.0
            for bound in (*BOUNDS, "+Inf"):
                labels = f'path="{path}",le="{bound}"'
                count += sums[_PLACES[f"{family}_bucket", labels]]
                add(family, f"{family}_bucket", labels, count)
            labels = f'path="{path}"'
            add(family, f"{family}_sum", labels, sums[_PLACES[f"{family}_sum", labels]])
            add(family, f"{family}_count", labels, count)
        for name, labels in _OTHERS:
            add(name, name, labels, sums[_PLACES[name, labels]])
        return "\n".join([*lines, ""])


class Counters:
    """The numbers of one process; written by one thread at a time."""

    def __init__(self, cells: Any) -> None:
        self._cells = cells

    def _add(self, name: str, labels: str = "", amount: float = 1.0) -> None:
        self._cells[_PLACES[name, labels]] += amount

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        known = path if path in PATHS else "other"
        self._add("plr_requests_total", f'path="{known}",status="{status}"')
        if path in TIMED:
            bound = (*BOUNDS, "+Inf")[bisect_left(BOUNDS, seconds)]
            self._add("plr_request_seconds_bucket", f'path="{path}",le="{bound}"')
            self._add("plr_request_seconds_sum", f'path="{path}"', seconds)

    def batch(self, users: int) -> None:
        """Count a call of the model."""
        self._add("plr_batches_total")
        self._add("plr_users_total", amount=users)

    def queue(self, users: int) -> None:
        """Set how many users wait or are being answered."""
        self._cells[_PLACES["plr_queue_users", ""]] = users

    def sessions(self, count: int, size: int) -> None:
        """Set how many sessions are kept, and their bytes."""
        self._cells[_PLACES["plr_sessions", ""]] = count
        self._cells[_PLACES["plr_sessions_bytes", ""]] = size

    def reload(self, outcome: str) -> None:
        """Count a run that was loaded, or refused."""
        self._add("plr_reloads_total", f'outcome="{outcome}"')

    def start(self) -> None:
        """Count a worker that starts; what the row's former one had in its queue, and its sessions, are gone."""
        self._add("plr_worker_starts_total")
        self.end()

    def end(self) -> None:
        """Forget what a worker that has ended had in its queue, and its sessions."""
        self.queue(0)
        self.sessions(0, 0)
