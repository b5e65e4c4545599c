"""Holds the socket, starts what serves, and replaces it by what serves another run. Imports no PyTorch."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from plr.errors import ConfigError, RunError, UserError
from plr.server.metrics import MetricsMemory
from plr.server.options import ServerOptions
from plr.server.processes import Channel, Signals

__all__ = ["listen", "require_extra", "run"]

_TICK = 1.0  # seconds between looks at where the link leads
_PATIENCE = 15.0  # seconds beyond a request's time that a process has to end


def require_extra() -> None:
    """Refuse to go on where what serves is not installed.

    Raises:
        RunError: it is not; says what to install.
    """
    missing = [name for name in ("uvicorn", "msgspec") if find_spec(name) is None]
    if missing:
        raise RunError(f"plr serve needs {' and '.join(missing)}: pip install -e '.[serve]'")
    if not hasattr(os, "fork"):
        raise RunError("plr serve needs an operating system whose processes can fork: Linux or macOS")


def listen(options: ServerOptions) -> socket.socket:
    """Return a socket at the address of the options, which takes no connections yet.

    Raises:
        ConfigError: the address is not of this machine alone, and neither a token nor no_token is given.
        OSError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        accepted = "a name or an address of this machine"
        raise ConfigError(f"host must be {accepted}; found {options.host!r} ({error.strerror})") from None
    is_local = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if not is_local and not (options.token or options.no_token):
        raise ConfigError(
            f"host {options.host!r} is reached from other machines, which needs a token: --token_file FILE or --token "
            "TOKEN; or --no_token serves whoever comes"
        )
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen at {options.host}:{options.port}: {error.strerror}") from None
    return listener


def run(options: ServerOptions) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status, 0 where all that was asked has been answered.

    Raises:
        UserError: the run cannot be served.
        OSError: the token's file cannot be read, or the address not be had.
    """
    require_extra()
    options = options.with_token_read()
    with listen(options) as listener:
        return _Supervisor(options, listener).run()


class _Generation:
    """A process that loads a run and serves it by workers of its own."""

    def __init__(self, options: ServerOptions, listener: socket.socket, memory: MetricsMemory, half: int) -> None:
        self.folder = os.path.realpath(options.run)
        self.serving = 0  # workers that have begun to take connections, and that have ended it
        self.closed = 0
        self.description = ""
        self.failure = ""
        self.since = time.monotonic()
        self.answer_to: list[int] = []
        self.half = half  # of the memory: two generations at most are alive at a time
        self._row = 1 + half * options.workers
        self._ended = [memory.counters(self._row + place) for place in range(options.workers)]
        self.channel, theirs = Channel.pair()
        lifeline, self._cut = os.pipe()
        settings = {
            "options": {**asdict(options), "token_file": None},
            "folder": self.folder,
            "listener": listener.fileno(),
            "channel": theirs.fileno(),
            "lifeline": lifeline,
            "metrics": memory.descriptor,
            "rows": memory.rows,
            "row": self._row,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plr.server.generation"],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(), theirs.fileno(), lifeline, memory.descriptor),
            start_new_session=True,  # Ctrl-C is the supervisor's alone
        )
        theirs.close()
        os.close(lifeline)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(json.dumps(settings).encode())

    def tell(self, number: int) -> None:
        """Send the process a signal, if it is there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """End the process and its workers at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def answer(self, text: str) -> None:
        """Answer those who asked for it: "+", or "-" where it failed, and why."""
        for descriptor in self.answer_to:
            _answer(descriptor, text)
        self.answer_to.clear()

    def close(self) -> None:
        """Give back what belongs to the process, which has ended; its workers, too, but where it was killed."""
        for counters in self._ended:
            counters.end()
        self.channel.close()
        os.close(self._cut)


def _answer(descriptor: int, text: str) -> None:
    with suppress(OSError):
        os.write(descriptor, text.encode()[:4000])
    os.close(descriptor)


def _say(text: str) -> None:
    """Print a line for the log; that nobody reads it any more is no reason to stop."""
    with suppress(OSError):
        print(f"plr: {text}", flush=True)


class _Supervisor:
    """What is served now, what is loaded beside it, and what still answers its last requests."""

    def __init__(self, options: ServerOptions, listener: socket.socket) -> None:
        self._options, self._listener = options, listener
        host, port = listener.getsockname()[:2]
        self._address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._memory = MetricsMemory(1 + 2 * options.workers)
        self._counters = self._memory.counters(0)
        self._current: _Generation | None = None
        self._coming: _Generation | None = None
        self._leaving: _Generation | None = None
        self._unannounced: _Generation | None = None
        self._wanted: list[int | None] = []  # reloads that were asked for, with where to answer
        self._stopping: float | None = None
        self._status = 0
        self._seen = os.path.realpath(options.run)

    def run(self) -> int:
        signals = Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD))
        try:
            self._start()
            while self._alive():
                numbers, ready = signals.wait([each.channel for each in self._alive()], _TICK)
                for number in numbers:
                    self._hear(number)
                for each in self._alive():
                    if each.channel in ready:
                        self._listen_to(each)
                self._reap()
                self._look()
            return self._status
        finally:
            for each in self._alive():
                each.kill()
            signals.close()

    def _alive(self) -> list[_Generation]:
        return [each for each in (self._current, self._coming, self._leaving) if each is not None]

    def _start(self, answer_to: list[int] | None = None) -> None:
        half = 0 if self._current is None else 1 - self._current.half
        self._coming = _Generation(self._options, self._listener, self._memory, half)
        self._coming.answer_to = answer_to or []
        self._seen = self._coming.folder

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._wanted.append(None)
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping is not None:
                self._status = 1
                for each in self._alive():
                    each.kill()
                return
            _say("stopping; what was asked is answered first")
            self._stopping = time.monotonic()
            self._listener.close()
            for descriptor in self._wanted:
                if descriptor is not None:
                    _answer(descriptor, "-the server is being stopped")
            self._wanted.clear()
            for each in self._alive():
                each.tell(signal.SIGTERM)

    def _listen_to(self, generation: _Generation) -> None:
        while (message := generation.channel.receive()) is not None:
            self._take(generation, *message)

    def _take(self, generation: _Generation, kind: str, text: str, answer_to: int | None) -> None:
        if kind == "reload":
            assert answer_to is not None
            if generation is self._leaving or self._coming is not None or self._stopping is not None:
                _answer(answer_to, "-another run is being loaded; ask again when it is served")
            else:
                self._wanted.append(answer_to)
        elif kind == "loaded":
            generation.description = text
        elif kind == "failed":
            generation.failure = text
        elif kind == "serving":
            generation.serving += 1
            if generation is self._coming and generation.serving == self._options.workers:
                self._hand_over(generation)
        elif kind == "closed":
            generation.closed += 1
            if generation is self._leaving and generation.closed == self._options.workers:
                self._announce()

    def _hand_over(self, generation: _Generation) -> None:
        """Let a generation that serves be the current one, and the former one take no new connections."""
        former, self._current, self._coming = self._current, generation, None
        self._unannounced = generation
        if former is None:
            self._announce()
        else:
            self._counters.reload("loaded")
            former.tell(signal.SIGUSR1)
            former.since = time.monotonic()
            self._leaving = former

    def _announce(self) -> None:
        """Say what is served, once every new connection is answered by it."""
        generation, self._unannounced = self._unannounced, None
        if generation is None:
            return
        workers = f"{self._options.workers} worker{'s' * (self._options.workers > 1)}"
        _say(
            f"serving {generation.folder} ({generation.description}) at {self._address}, {workers}, loaded in "
            f"{time.monotonic() - generation.since:.1f} s"
        )
        generation.answer(f"+serving {os.path.basename(generation.folder)} ({generation.description})")

    def _reap(self) -> None:
        """Notice processes that have ended."""
        for generation in self._alive():
            status = generation.process.poll()
            if status is None:
                continue
            self._listen_to(generation)
            generation.close()
            if generation is self._leaving:
                self._leaving = None
                self._announce()
            elif generation is self._coming:
                self._coming = None
                self._refuse(generation, status)
            else:
                self._current = None
                if self._stopping is None:
                    raise RunError(f"the process that served has ended with status {status}; it says why above")
                self._status = max(self._status, abs(status))

    def _refuse(self, generation: _Generation, status: int) -> None:
        reason = generation.failure or f"the process that loaded it has ended with status {status}"
        if self._stopping is not None:
            generation.answer("-the server is being stopped")
            return
        if self._current is None:
            raise UserError(reason)
        self._counters.reload("refused")
        text = f"the run was not loaded, the former one is still served: {reason}"
        _say(text)
        generation.answer(f"-{text}")

    def _look(self) -> None:
        """Load another run where that was asked for or the link has been moved; end what does not end by itself."""
        now = time.monotonic()
        late = self._options.timeout + _PATIENCE
        if self._stopping is not None and now - self._stopping > late:
            self._status = 1
            for each in self._alive():
                each.kill()
        if self._leaving is not None and now - self._leaving.since > late + _PATIENCE:
            self._leaving.kill()
        if self._stopping is not None or self._current is None or self._coming or self._leaving:
            return
        folder = os.path.realpath(self._options.run)
        if folder != self._seen and os.path.isdir(folder):
            self._wanted.append(None)
        if self._wanted:
            answer_to: list[Any] = [descriptor for descriptor in self._wanted if descriptor is not None]
            self._wanted.clear()
            self._start(answer_to)
