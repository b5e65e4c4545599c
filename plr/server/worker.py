"""A process that answers: uvicorn with the application, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from plr.server.app import Application
from plr.server.messages import Refusal
from plr.server.options import ServerOptions
from plr.server.processes import Channel

__all__ = ["ENDING", "allow_connections", "reloader", "serve"]

ENDING = (signal.SIGTERM, signal.SIGUSR1)
"""What a worker is told to end by: at once, or when its connections have ended."""

KEEP_ALIVE = 5  # seconds that a connection without requests is kept
_MOST_CONNECTIONS = 1000
_MOST_FILES = 4 * _MOST_CONNECTIONS
_UNREAD = 60.0  # seconds in which a client must take something of an answer that waits for it
_SWITCH_INTERVAL = 0.0005  # seconds: the thread that computes must not keep the one that reads requests waiting


class _Server(uvicorn.Server):
    """uvicorn's server, which also hands over to the workers of another run.

    SIGTERM: no new connections, what was asked is answered, with `Connection: close`, connections are closed. SIGUSR1:
    the same, but every connection may ask once more, until it has been idle for as long as any connection may be, so
    that no client finds its connection closed that it would not have found closed anyway.
    """

    def __init__(self, application: Application, options: ServerOptions, lifeline: int, channel: Channel) -> None:
        config = uvicorn.Config(
            application,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(options.timeout) + 2,
        )
        super().__init__(config)
        self._application, self._options, self._lifeline, self._channel = application, options, lifeline, channel
        self._leaving: asyncio.Task[None] | None = None
        self._waiting: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()
        self._unread: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    async def on_tick(self, counter: int) -> bool:
        """Once a second, close the connections that ask nothing, or take no answer, for too long."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            self._close_unread(now)
            self._close_waiting(now)
        return await super().on_tick(counter)

    def _close_unread(self, now: float) -> None:
        # What is closed by uvicorn goes only when all that was written has been taken: whoever asks and never reads
        # would keep its connection, and with enough of them the server from everybody else.
        for connection in list(self.server_state.connections):
            size = connection.transport.get_write_buffer_size()
            former, since = self._unread.get(connection, (size, now))
            if size != former or not size:
                since = now
            self._unread[connection] = size, since
            if now - since > _UNREAD:
                connection.transport.abort()

    def _close_waiting(self, now: float) -> None:
        # uvicorn closes what is idle behind an answer, but neither what has never asked nor half a head. `cycle` is a
        # connection's last request whose head was read.
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                self._waiting.pop(connection, None)
                continue
            former, since = self._waiting.get(connection, (None, now))
            if former is not cycle:
                since = now
            self._waiting[connection] = cycle, since
            if now - since > max(self._options.timeout, KEEP_ALIVE):
                connection.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and say so in the answers until then: who keeps a connection would ask on it while it is closed."""
        self._application.draining = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._hand_over)
        loop.add_reader(self._lifeline, self._orphaned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self._channel.send("serving")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, and wait no longer than for answers for those who do not take them."""
        asyncio.get_running_loop().call_later(self._options.timeout + 1, self._abort_unread)
        await super().shutdown(sockets)

    def _abort_unread(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport.get_write_buffer_size():
                connection.transport.abort()

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._lifeline)
        self.should_exit = True

    def _hand_over(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        for server in self.servers:
            server.close()
        self._channel.send("closed")
        self._application.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.timeout + KEEP_ALIVE + 1
        while self.server_state.connections and loop.time() < end:
            await asyncio.sleep(0.05)
        self.should_exit = True


def allow_connections() -> None:
    """Let this process open as many files as connections may come: unless asked for more, many systems allow 1,024.

    Connections that find no file are neither answered nor refused, and the log has a line for each try.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system that allows less after all
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(
    application: Application, options: ServerOptions, listener: socket.socket, lifeline: int, channel: Channel
) -> int:
    """Answer until SIGTERM, SIGUSR1 or the end of the process at the lifeline's other end; returns the exit status.

    The two signals are blocked when this is called.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    allow_connections()
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of each request that is no HTTP
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn sets its own, and raises what came once more in the end, which then changes nothing.
        signal.signal(number, lambda *_: None)
    server = _Server(application, options, lifeline, channel)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def reloader(channel: Channel) -> Any:
    """Return what asks the supervisor for another run, and waits for the outcome."""

    async def reload() -> str:
        reading, writing = os.pipe()
        channel.send("reload", answer_to=writing)
        os.close(writing)
        os.set_blocking(reading, False)
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", buffering=0)
        )
        try:
            outcome = (await stream.read()).decode(errors="replace")  # it may have been cut off
        finally:
            transport.close()
        if not outcome.startswith("+"):
            raise Refusal(409, outcome.removeprefix("-") or "the server is being stopped")
        return outcome[1:]

    return reload
