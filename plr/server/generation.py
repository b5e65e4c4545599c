"""The process that loads a run, checks it and forks the workers: `python -m plr.server.generation`, by the supervisor.

Workers share what it has loaded, as long as nobody writes to it. It never answers anything itself: from it, as it was
after loading, a worker is forked again where one has crashed.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any

import torch

from plr.errors import RunError, UserError
from plr.server.app import Application
from plr.server.metrics import MetricsMemory
from plr.server.options import ServerOptions
from plr.server.processes import Channel, Signals, exit_status
from plr.server.worker import ENDING, reloader, serve
from plr.serving import Recommender
from plr.serving.ragged import Ragged
from plr.serving.similar import Neighbours

__all__ = ["check", "main"]

_BACKLOG = 2048  # connections that wait to be taken, as uvicorn has it
_CRASHES, _SECONDS = 5, 60.0  # so many crashes of workers within that time, and the process gives up


def check(recommender: Recommender) -> None:
    """Ask for recommendations for a few histories, short and long, alone and together.

    Raises:
        RunError: an answer is not finite, or not the same alone, or missing.
    """
    ids, longest = recommender.item_ids, recommender.config.max_length
    step = max(1, len(ids) // 7)
    histories = [ids[:1], ids[-1:], ids[::step], (ids * longest)[:longest]]
    k = min(10, len(ids))
    together = recommender.recommend(histories, k, exclude_seen=False)
    for history, answer in zip(histories, together, strict=True):
        if len(answer) != k or not all(math.isfinite(each.score) for each in answer):
            raise RunError("the run's answers are not finite; the weights are damaged")
        if recommender.engine is not None and recommender.recommend([history], k, exclude_seen=False) != [answer]:
            raise RunError("the run's answers differ between a history alone and among others")


def main() -> int:
    """Load the run of the settings on stdin and serve it; returns the exit status."""
    settings = json.load(sys.stdin)
    options = ServerOptions(**{**settings["options"], "run": settings["folder"]})
    channel = Channel(socket.socket(fileno=settings["channel"]))
    listener = socket.socket(fileno=settings["listener"])
    memory = MetricsMemory(settings["rows"], settings["metrics"])
    try:
        recommender, neighbours, categories = _load(options)
        _begin_to_listen(listener)
    except Exception as error:
        known = isinstance(error, (UserError, OSError))
        if not known:
            traceback.print_exc()
        channel.send("failed", str(error) if known else f"{type(error).__name__} while the run was loaded")
        return 1
    config = recommender.config
    computing = "the engine" if recommender.engine is not None else "PyTorch"
    items = f"{len(recommender.item_ids):,} items"
    channel.send("loaded", f"{config.backbone}, {config.method}, {items}, answered by {computing}")
    signals = Signals((signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP))
    row = settings["row"]
    workers = _Workers(options, recommender, neighbours, categories, memory, row, listener, channel, signals)
    return workers.run(settings["lifeline"])


def _say(text: str) -> None:
    """Print a line for the log; that nobody reads it any more is no reason to stop."""
    with suppress(OSError):
        print(f"plr: {text}", file=sys.stderr)


def _load(options: ServerOptions) -> tuple[Recommender, Neighbours, Ragged | None]:
    torch.set_num_threads(1)  # before anything is computed: workers are forked, and OpenMP's threads are not
    recommender = Recommender.load(options.run)
    check(recommender)
    categories = None
    if options.categories is not None:
        categories = recommender.categories_of(options.categories, options.category_field)
    return recommender, Neighbours(recommender), categories


def _begin_to_listen(listener: socket.socket) -> None:
    """Let connections come; of two servers that were bound to one address meanwhile the second finds it taken."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from None


class _Workers:
    """The forked processes."""

    def __init__(
        self, options: ServerOptions, recommender: Recommender, neighbours: Neighbours, categories: Ragged | None,
        memory: MetricsMemory, row: int, listener: socket.socket, channel: Channel, signals: Signals,
    ) -> None:  # fmt: skip
        self._options, self._recommender, self._neighbours = options, recommender, neighbours
        self._categories = categories
        self._memory, self._row = memory, row
        self._listener, self._channel, self._signals = listener, channel, signals
        self._places: dict[int, int] = {}  # of running workers, by their process id
        self._crashes: list[float] = []

    def run(self, lifeline: int) -> int:
        """Start the workers, and others for those that crash; end when told so, or when the lifeline is cut."""
        own_end, self._workers_lifeline = os.pipe()
        self._lifeline = own_end
        # What has been loaded stays; to look through it would copy it into each worker.
        gc.collect()
        gc.freeze()
        for place in range(self._options.workers):
            self._fork(place)
        status, ending = 0, False
        watched = [lifeline]
        while self._places:
            numbers, ready = self._signals.wait(watched, None)
            told = {number for number in numbers if number in ENDING}
            if lifeline in ready:
                watched.clear()
                told.add(signal.SIGTERM)
            if told:
                ending = True
                self._listener.close()
                for number in told:
                    for process in self._places:
                        os.kill(process, number)
            for place, ended in self._ended():
                status = max(status, ended)
                if ending:
                    continue
                _say(f"a worker has ended with status {ended}; another one is started")
                now = time.monotonic()
                self._crashes = [*(crash for crash in self._crashes if now - crash < _SECONDS), now]
                if len(self._crashes) > _CRASHES:
                    _say(f"{len(self._crashes)} workers ended within {_SECONDS:g} s")
                    ending = True
                    for process in self._places:
                        os.kill(process, signal.SIGTERM)
                else:
                    status = 0
                    self._fork(place)
        return status

    def _ended(self) -> list[tuple[int, int]]:
        found = []
        while self._places:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            found.append((self._places.pop(process), exit_status(status)))
        return found

    def _fork(self, place: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until a worker can hear them
        with warnings.catch_warnings():
            # Of threads that the loading has left (those of polars) the workers need none.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process:
            self._places[process] = place
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            return
        status = 1
        try:
            self._signals.close()
            os.close(self._workers_lifeline)
            status = self._serve(place)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _serve(self, place: int) -> int:
        options: Any = self._options
        application = Application(
            self._recommender,
            options,
            neighbours=self._neighbours,
            categories=self._categories,
            metrics=(self._memory, self._row + place),
            reload=reloader(self._channel),
        )
        return serve(application, options, self._listener, self._lifeline, self._channel)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as the workers end: libraries that look for what is left at Python's end have nothing to say
