"""The ASGI application: a loaded run, answered over HTTP. It may be mounted in an application of your own."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from plr.errors import RequestError, shortened
from plr.server.batches import Batches, GoneError, QueueFullError, TooLateError
from plr.server.messages import (
    Failure,
    Health,
    Limits,
    Message,
    Ready,
    Recommendations,
    Refusal,
    Requests,
    SimilarItems,
)
from plr.server.metrics import MetricsMemory
from plr.server.openapi import document
from plr.server.options import ServerOptions
from plr.server.routes import Route
from plr.server.session_answers import SessionAnswers
from plr.server.sessions import Sessions
from plr.serving import Recommender
from plr.serving.ragged import Ragged
from plr.serving.similar import Neighbours

__all__ = ["Application"]

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = "application/json"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_MOST_DISCARDED = 16  # times the largest body: what is read of one that is refused, so that its sender hears why
_LINGER = 1.0  # seconds for that
_RETRY_AFTER = (b"retry-after", b"1")

log = logging.getLogger("plr.server")


class _Asking(NamedTuple):
    """Who waits for an answer: until when, by the loop's time, and what tells that the connection was closed."""

    due: float
    receive: Receive


class Application:
    """An ASGI 3 application.

        app = Application(plr.Recommender.load("runs/first"), ServerOptions("runs/first"))

    The thread that computes starts with the lifespan's startup, or with the first request where there is no lifespan.

    Args:
        recommender: the run.
        options: the limits, and the token, if there is one.
        neighbours: what answers /similar; None: made of the run.
        categories: of the items, as `Recommender.categories_of` returns them; None: those of the options, if any.
        metrics: memory that other processes count in too, and the row that is this one's.
        reload: loads the run anew and returns a message; raises `Refusal`. None: /reload is not found.

    Attributes:
        draining: set where clients shall close their connections after the next answer.
    """

    def __init__(
        self,
        recommender: Recommender,
        options: ServerOptions,
        *,
        neighbours: Neighbours | None = None,
        categories: Ragged | None = None,
        metrics: tuple[MetricsMemory, int] | None = None,
        reload: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._recommender, self._options, self._reload = recommender, options, reload
        self._neighbours = Neighbours(recommender) if neighbours is None else neighbours
        if categories is None and options.categories is not None:
            categories = recommender.categories_of(options.categories, options.category_field)
        self._categories = categories
        self._memory, row = (MetricsMemory(1), 0) if metrics is None else metrics
        self._counters = self._memory.counters(row)
        self._token = None if options.token is None else sha256(options.token.encode()).digest()
        items = len(recommender.item_ids)
        self._requests = Requests(Limits.of(options, items))
        self._batches = Batches(self._compute, queue=options.queue, batch=options.batch, counters=self._counters)
        self._sessions = Sessions(options.sessions, options.session_memory << 20)  # of the thread that computes
        self._session_answers = SessionAnswers(
            recommender, self._sessions, self._counters, self._categories, options.max_history
        )
        self._is_running = False
        self.draining = False
        self._ready = Ready(
            "ready", Path(options.run).name, recommender.config.backbone, recommender.config.method, items,
            recommender.config.max_length,
        )  # fmt: skip
        computed = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
        routes = [
            Route("POST", "/recommend", "The best items for each history.", self._recommend,
                  self._requests.recommend, Recommendations, statuses=(*computed, 404, 409)),
            Route("POST", "/similar", "The items nearest to each item.", self._similar,
                  self._requests.similar, SimilarItems, statuses=computed),
            Route("GET", "/health", "Whether the process answers.", self._health, response=Health),
            Route("GET", "/ready", "What is served.", self._is_ready, response=Ready),
            Route("GET", "/metrics", "Counts for Prometheus.", self._metrics, media=_PROMETHEUS, statuses=(401,)),
            Route("GET", "/openapi.json", "This document.", self._openapi, statuses=(401,)),
        ]  # fmt: skip
        if reload is not None:
            statuses = (401, 409, 503) if self._token else (403,)
            text = "Load the run anew, and serve it once it is checked."
            routes.append(Route("POST", "/reload", text, self._load_anew, response=Message, statuses=statuses))
        self._routes = {(route.method, route.path): route for route in routes}
        self._document = msgspec.json.encode(document(routes, self._token is not None))
        self._encode = msgspec.json.Encoder().encode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            if not self._is_running or self._batches.loop is not asyncio.get_running_loop():
                self.stop()
                self.start()
            await self._respond(scope, receive, send)
        else:
            raise ValueError(f"only HTTP is served; found {scope['type']}")

    def start(self) -> None:
        """Start the thread that computes; the loop must be running."""
        self._batches.start()
        self._is_running = True
        self._counters.start()

    def stop(self) -> None:
        """End that thread; the sessions go with it."""
        if self._is_running:
            self._batches.stop()
            self._sessions.clear()
            self._counters.sessions(0, 0)
            self._is_running = False

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        status, media, headers = 200, _JSON, Headers()
        try:
            query = scope.get("query_string", b"")
            media, body = await self._answer(scope["method"], path, query, dict(scope["headers"]), receive)
        except Refusal as refusal:
            status, headers = refusal.status, list(refusal.headers)
            body = self._encode(Failure(refusal.message))
        except asyncio.CancelledError:  # the time that a server which is being stopped has for answers is over
            status, body = 503, self._encode(Failure("the server is being stopped"))
        except Exception as error:
            status, body = 500, self._encode(Failure("the server made a mistake; its log says where"))
            # Messages may hold ids, so the places alone are logged.
            places = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
            log.error("%s %s: %s\n%s", scope["method"], path, type(error).__name__, places)
        if self.draining and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        length = str(len(body)).encode()
        headers += [(b"content-type", media.encode()), (b"content-length", length), (b"cache-control", b"no-store")]
        with suppress(OSError):  # the client has gone
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        self._counters.request(path, status, time.perf_counter() - begin)

    async def _answer(
        self, method: str, path: str, query: bytes, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[str, bytes]:
        """Return the kind of an answer and the answer."""
        due = asyncio.get_running_loop().time() + self._options.timeout
        route = self._routes.get(("GET" if method == "HEAD" else method, path))
        if route is None:
            self._refuse_unknown(method, path)
        assert route is not None
        if self._token is not None and 401 in route.statuses:
            self._check_token(headers.get(b"authorization", b""))
        request = None
        if route.request is not None:
            if query:  # k=3, say, which would be ignored
                found = shortened(query.decode("latin-1"))
                raise Refusal(422, f"what is asked must be in the body, not behind the path; found {found}")
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                found = repr(kind.decode("latin-1")) if kind else "none"
                raise Refusal(415, f"the header Content-Type must be application/json; found {found}")
            coding = headers.get(b"content-encoding", b"identity").strip().lower()
            if coding != b"identity":
                found = repr(coding.decode("latin-1"))
                text = f"the body must be sent as it is, without the header Content-Encoding; found {found}"
                raise Refusal(415, text)
            body = await self._read(headers, receive, due)
            request = self._requests.decode(route.request, body)
        answer = await route.answer(request, _Asking(due, receive))
        return route.media, answer if isinstance(answer, bytes) else self._encode(answer)

    def _refuse_unknown(self, method: str, path: str) -> None:
        methods = [route.method for route in self._routes.values() if route.path == path]
        if not methods:
            paths = ", ".join(route.path for route in self._routes.values())
            raise Refusal(404, f"nothing is served at this path; what is: {paths}")
        methods += ["HEAD"] * ("GET" in methods)
        allowed = ", ".join(methods)
        raise Refusal(405, f"the method must be {allowed}; found {method}", [(b"allow", allowed.encode())])

    def _check_token(self, header: bytes) -> None:
        scheme, _, token = header.partition(b" ")
        is_right = hmac.compare_digest(sha256(token.strip()).digest(), self._token or b"")
        if scheme.lower() != b"bearer" or not is_right:
            found = "another one" if header else "none"
            text = f'the header Authorization must be "Bearer" and the server\'s token; found {found}'
            raise Refusal(401, text, [(b"www-authenticate", b"Bearer")])

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, due: float) -> bytes:
        """Return the body; of one that is too large as much is read as lets its sender hear so."""
        most = self._options.max_body
        length = headers.get(b"content-length", b"0")
        announced = int(length) if length.isdigit() else 0
        too_large = announced > most
        if too_large and b"expect" in headers:
            raise self._too_large(announced)  # its sender waits for leave
        parts, size = [], 0
        while True:
            left = due - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), min(left, _LINGER) if too_large else left)
            except asyncio.TimeoutError:
                if too_large:
                    raise self._too_large(max(size, announced)) from None
                text = f"the body must arrive within {self._options.timeout:g} s; found {size} bytes by then"
                raise Refusal(408, text, [(b"connection", b"close")]) from None
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the connection was closed before the body's end")
            part = message.get("body", b"")
            size += len(part)
            too_large = too_large or size > most
            if not too_large:
                parts.append(part)
            if too_large and (size > most * _MOST_DISCARDED or not message.get("more_body", False)):
                raise self._too_large(max(size, announced))
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self, size: int) -> Refusal:
        text = f"the body must have at most {self._options.max_body} bytes; found {size}"
        return Refusal(413, text, [(b"connection", b"close")])

    async def _submit(self, kind: str, option: Any, request: Any, users: int, asking: _Asking) -> Any:
        loop = asyncio.get_running_loop()
        gone = loop.create_task(_closed(asking.receive))
        try:
            return await self._batches.submit((kind, option), request, users, asking.due - loop.time(), gone)
        except GoneError:
            raise Refusal(499, "the connection was closed before the answer") from None
        except QueueFullError:
            text = f"{self._options.queue} users may wait, and too many do; try again in a second"
            raise Refusal(429, text, [_RETRY_AFTER]) from None
        except TooLateError as late:
            text = f"the answer was not {'ready' if late.started else 'begun'} within {self._options.timeout:g} s"
            raise Refusal(504 if late.started else 503, text, [_RETRY_AFTER]) from None
        except RequestError as error:
            raise Refusal(422, str(error)) from None
        finally:
            gone.cancel()

    async def _recommend(self, request: Any, asking: _Asking) -> Any:
        if request.at_most is not None and self._categories is None:
            raise Refusal(422, "at_most: this server knows no categories of items; start it with --categories FILE")
        if request.session is not msgspec.UNSET:
            if not self._options.sessions:
                raise Refusal(422, "session: this server keeps none (--sessions 0); send histories")
            return await self._submit("session", None, request, 1, asking)  # all of one group: in their order
        # A list of allowed items is read once for all histories of its request, which is therefore answered alone.
        only = None if request.only is None else object()
        option = (request.exclude_seen, request.unknown, request.at_most, only)
        answer = await self._submit("recommend", option, request, len(request.histories), asking)
        return Recommendations(answer)

    async def _similar(self, request: Any, asking: _Asking) -> Any:
        return SimilarItems(await self._submit("similar", None, request, len(request.items), asking))

    def _compute(self, group: tuple[str, Any], requests: list[Any]) -> list[Any]:
        """Answer requests of one group by one call; a user's best k are the first of a larger k's."""
        kind, option = group
        if kind == "session":
            return self._session_answers(requests)
        k = max(request.k for request in requests)
        if kind == "similar":
            rows = self._neighbours([item for request in requests for item in request.items], k)
            counts = [len(request.items) for request in requests]
        else:
            exclude_seen, unknown, at_most, _ = option
            rows = self._recommender.recommend(
                [history for request in requests for history in request.histories],
                k,
                exclude_seen=exclude_seen,
                unknown=unknown,
                only=requests[0].only,
                exclude=_excluded(requests),
                at_most=at_most,
                categories=None if at_most is None else self._categories,
            )
            counts = [len(request.histories) for request in requests]
        answers, first = [], 0
        for request, count in zip(requests, counts, strict=True):
            answers.append([row[: request.k] for row in rows[first : first + count]])
            first += count
        return answers

    async def _health(self, _: Any, __: _Asking) -> Any:
        return Health()

    async def _is_ready(self, _: Any, __: _Asking) -> Any:
        return self._ready

    async def _metrics(self, _: Any, __: _Asking) -> Any:
        return self._memory.text().encode()

    async def _openapi(self, _: Any, __: _Asking) -> Any:
        return self._document

    async def _load_anew(self, _: Any, __: _Asking) -> Any:
        assert self._reload is not None
        if self._token is None:
            raise Refusal(403, "this server has no token, and reloads for nobody who asks; send it SIGHUP")
        return Message(await self._reload())


async def _closed(receive: Receive) -> None:
    """Return when the connection has been closed; never, where the server tells other things of a body that is read."""
    if (await receive())["type"] != "http.disconnect":
        await asyncio.get_running_loop().create_future()


def _excluded(requests: list[Any]) -> list[Any] | None:
    """Return for each history the list of its request; None where none has any."""
    if not any(request.exclude for request in requests):
        return None
    return [request.exclude or None for request in requests for _ in request.histories]
