"""An ASGI application asked directly, without a server."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        assert self.status != 200
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        return self.json["error"]


class Gate:
    """Lets the thread that computes wait in a method of the recommender, and notes how many histories each call had."""

    def __init__(self, recommender, monkeypatch, method):
        self.opened, self.entered, self.sizes = threading.Event(), threading.Event(), []
        asked = getattr(recommender, method)

        def gated(histories, *arguments, **options):
            self.entered.set()
            assert self.opened.wait(20)
            self.sizes.append(len(histories))
            return asked(histories, *arguments, **options)

        monkeypatch.setattr(recommender, method, gated)


async def ask(
    app, method, path, body=b"", *, kind="application/json", headers=(), chunks=None, root_path="", query=b""
):
    """One request; `chunks` are an async iterator of the body's parts in place of `body`."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {b"content-type": kind.encode(), b"content-length": str(len(body)).encode()}
    if chunks is not None:
        del given[b"content-length"]
    given.update({name.encode(): value.encode() for name, value in headers})
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query, "headers": list(given.items()),
        "root_path": root_path,
    }  # fmt: skip
    sent = []

    async def whole():
        yield body

    parts = (whole() if chunks is None else chunks).__aiter__()

    async def receive():
        try:
            return {"type": "http.request", "body": await parts.__anext__(), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start, content = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(found) == len(start["headers"])  # none twice
    assert int(found["content-length"]) == len(content["body"]) or method == "HEAD"
    return Answer(start["status"], found, content["body"])


@asynccontextmanager
async def running(app):
    """The application's life as a server leads it."""
    incoming, outgoing = asyncio.Queue(), asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan"}, incoming.get, outgoing.put))
    await incoming.put({"type": "lifespan.startup"})
    assert await outgoing.get() == {"type": "lifespan.startup.complete"}
    try:
        yield app
    finally:
        await incoming.put({"type": "lifespan.shutdown"})
        assert await outgoing.get() == {"type": "lifespan.shutdown.complete"}
        await life


def answers(app, *requests):
    """The answers to requests, each of them the arguments of `ask`, one after the other."""

    async def all_of_them():
        async with running(app):
            return [await ask(app, *request) for request in requests]

    return asyncio.run(all_of_them())
