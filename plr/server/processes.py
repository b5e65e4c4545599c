"""What the supervisor, the loading process and the workers have in common: signals and messages as events."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

__all__ = ["Channel", "Signals"]


class Signals:
    """Signals that come while one waits: none is lost, and nothing is done inside a handler."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._end, self._begin = socket.socketpair()
        self._end.setblocking(False)
        self._begin.setblocking(False)
        self._former_descriptor = signal.set_wakeup_fd(self._begin.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def close(self) -> None:
        """Let the signals be as they were."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_descriptor)
        self._end.close()
        self._begin.close()

    def wait(self, descriptors: Iterable[Any], seconds: float | None) -> tuple[list[int], list[Any]]:
        """Return the signals that have come, and the descriptors that can be read."""
        ready, _, _ = select.select([self._end, *descriptors], [], [], seconds)
        numbers: list[int] = []
        if self._end in ready:
            ready.remove(self._end)
            with suppress(BlockingIOError):
                numbers.extend(self._end.recv(4096))
        return numbers, ready


class Channel:
    """Messages to the supervisor, one a datagram, with a descriptor where the answer is to be written."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return the supervisor's end and the one for the process that loads and its workers."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        first.setblocking(False)
        return cls(first), cls(second)

    def fileno(self) -> int:
        """Return what `select` waits for."""
        return self.end.fileno()

    def send(self, kind: str, text: str = "", answer_to: int | None = None) -> None:
        """Send a message; a supervisor that is gone does not hear it."""
        message = json.dumps([kind, text[:8000]]).encode()
        with suppress(OSError):
            if answer_to is None:
                self.end.send(message)
            else:
                socket.send_fds(self.end, [message], [answer_to])

    def receive(self) -> tuple[str, str, int | None] | None:
        """Return the kind and text of the next message, and the descriptor that came with it; None where none waits."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self.end, 1 << 16, 1)
        except OSError:
            return None
        kind, text = json.loads(message)
        return kind, text, descriptors[0] if descriptors else None

    def close(self) -> None:
        """Close this end."""
        with suppress(OSError):
            self.end.close()


def exit_status(status: int) -> int:
    """Return what a shell would say of a process that `os.waitpid` has waited for."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
