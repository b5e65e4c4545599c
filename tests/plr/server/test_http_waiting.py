"""Those who wait for an answer: who has gone, who never asks, and what goes wrong in the thread that computes."""

from __future__ import annotations

import asyncio
import logging
import resource
from types import SimpleNamespace

import pytest

from plr.server.options import ServerOptions
from plr.serving import Recommender
from tests.plr.models.helpers import small_config, small_model
from tests.plr.server.helpers import Gate, ask, running

SERVE = "plr serve needs the extra: pip install -e '.[serve]'"
Application = pytest.importorskip("plr.server.app", reason=SERVE, exc_type=ModuleNotFoundError).Application
metrics = pytest.importorskip("plr.server.metrics", reason=SERVE, exc_type=ModuleNotFoundError)
worker = pytest.importorskip("plr.server.worker", reason=SERVE, exc_type=ModuleNotFoundError)

ITEMS = 29
BODY = {"histories": [["i1"]]}


@pytest.fixture
def recommender():
    return Recommender(small_model(ITEMS).float(), [f"i{item}" for item in range(ITEMS)], small_config())


class Client:
    """Sends a request, and may close its connection before the answer."""

    def __init__(self, body=b'{"histories": [["i1"]]}'):
        self.gone, self.sent, self.body = asyncio.Event(), [], body

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    def ask(self, app):
        scope = {"type": "http", "method": "POST", "path": "/recommend", "root_path": ""}
        scope["headers"] = [(b"content-type", b"application/json")]
        return asyncio.create_task(app(scope, self.receive, self.send))


@pytest.mark.parametrize("of", ["histories", "session"])
def test_what_a_client_that_has_gone_asked_is_not_computed(recommender, monkeypatch, of):
    gate = Gate(recommender, monkeypatch, "rank")
    app = Application(recommender, ServerOptions("run"))
    waiting = b'{"session": {"id": "s", "history": ["i1"]}}' if of == "session" else b'{"histories": [["i1"], ["i2"]]}'

    async def main():
        async with running(app):
            first, second, third = Client(), Client(waiting), Client()
            tasks = [first.ask(app)]
            await asyncio.to_thread(gate.entered.wait, 20)
            tasks += [second.ask(app), third.ask(app)]
            await asyncio.sleep(0.05)
            second.gone.set()
            await asyncio.wait_for(tasks[1], 20)  # at once, though the thread is busy
            gate.opened.set()
            await asyncio.gather(*tasks)
            text = (await ask(app, "GET", "/metrics")).body.decode()
            return [each.sent[0]["status"] for each in (first, third)], text

    statuses, text = asyncio.run(main())
    assert statuses == [200, 200]
    assert gate.sizes == [1, 1]
    assert 'plr_requests_total{path="/recommend",status="499"} 1.0' in text
    assert "plr_queue_users 0.0" in text


class Panic(BaseException):
    """As pyo3's, which is no Exception."""


@pytest.mark.parametrize("error", [Panic("i7"), StopIteration("i7"), SystemExit(3)])
def test_no_failure_ends_the_thread(recommender, monkeypatch, caplog, error):
    recommend = recommender.recommend

    def failing(histories, *arguments, **options):
        if ["i7"] in histories:
            raise error
        return recommend(histories, *arguments, **options)

    monkeypatch.setattr(recommender, "recommend", failing)
    app = Application(recommender, ServerOptions("run", timeout=5))

    async def main():
        async with running(app):
            bodies = [BODY, {"histories": [["i7"]]}, BODY]
            together = await asyncio.gather(*(ask(app, "POST", "/recommend", body) for body in bodies))
            return [*together, await ask(app, "POST", "/recommend", BODY)]

    with caplog.at_level(logging.ERROR):
        found = asyncio.run(main())
    assert [each.status for each in found] == [200, 500, 200, 200]
    assert "i7" not in caplog.text


def test_an_application_without_a_life_answers_in_one_loop_after_another(recommender):
    """As test clients ask it."""
    app = Application(recommender, ServerOptions("run", timeout=5))
    for _ in range(2):
        assert asyncio.run(ask(app, "POST", "/recommend", BODY)).status == 200
    assert "plr_queue_users 0.0" in asyncio.run(ask(app, "GET", "/metrics")).body.decode()
    app.stop()


def test_an_encoded_body_is_refused_by_its_encoding(recommender):
    async def main(coding):
        app = Application(recommender, ServerOptions("run"))
        async with running(app):
            return await ask(app, "POST", "/recommend", BODY, headers=[("content-encoding", coding)])

    refused = asyncio.run(main("gzip"))
    assert (refused.status, refused.error) == (
        415, "the body must be sent as it is, without the header Content-Encoding; found 'gzip'",
    )  # fmt: skip
    assert asyncio.run(main("Identity")).status == 200


class Cycle:
    response_complete = False


class Connection:
    """What uvicorn's protocols have of what is read here."""

    def __init__(self, cycle=None):
        self.cycle, self.closed = cycle, False

    def shutdown(self):
        self.closed = True


def test_connections_that_never_ask_are_closed(recommender):
    server = worker._Server(Application(recommender, ServerOptions("run")), ServerOptions("run", timeout=7), -1, None)
    silent, busy, asking = Connection(), Connection(Cycle()), Connection()
    server.server_state.connections.update((silent, busy, asking))
    for now in range(100, 108):
        server._close_waiting(now)
    asking.cycle = Cycle()  # its head has come
    asking.cycle.response_complete = True
    assert not silent.closed
    server._close_waiting(108)
    assert (silent.closed, busy.closed, asking.closed) == (True, False, False)
    for now in range(109, 116):
        server._close_waiting(now)
    assert not asking.closed
    server._close_waiting(116)  # half a second head, or none
    assert (busy.closed, asking.closed) == (False, True)


class Transport:
    """What is written to a client that takes some of it, or nothing."""

    def __init__(self, sizes):
        self.sizes, self.aborted = iter(sizes), False

    def get_write_buffer_size(self):
        return next(self.sizes)

    def abort(self):
        self.aborted = True


def test_connections_that_take_no_answer_are_closed(recommender, monkeypatch):
    monkeypatch.setattr(worker, "_UNREAD", 3.0)
    server = worker._Server(Application(recommender, ServerOptions("run")), ServerOptions("run"), -1, None)
    stuck, slow, idle = Connection(Cycle()), Connection(), Connection()
    stuck.transport = Transport([0, *[9] * 10])
    slow.transport = Transport([9, 9, 9, 8, 8, 8, 7, 7, 7])
    idle.transport = Transport([0] * 10)
    server.server_state.connections.update((stuck, slow, idle))
    for now in range(100, 105):
        server._close_unread(now)
    assert not stuck.transport.aborted
    server._close_unread(105)
    for now in range(106, 109):
        server._close_unread(now)
    assert [each.transport.aborted for each in (stuck, slow, idle)] == [True, False, False]


def test_a_server_that_ends_does_not_wait_for_those_who_take_no_answer(recommender):
    server = worker._Server(Application(recommender, ServerOptions("run")), ServerOptions("run", timeout=0.1), -1, None)
    stuck, asking = Connection(Cycle()), Connection(Cycle())
    stuck.transport, asking.transport = Transport([9]), Transport([0])
    server.server_state.connections.update((stuck, asking))
    server.servers = []

    async def ended():
        pass

    server.lifespan = SimpleNamespace(shutdown=ended)

    async def main():
        ending = asyncio.create_task(server.shutdown())
        await asyncio.sleep(0.05)
        early = stuck.transport.aborted
        for _ in range(200):  # 1.1 s, however busy the machine is
            await asyncio.sleep(0.1)
            if late := stuck.transport.aborted:
                break
        server.server_state.connections.clear()
        await ending
        return early, late, asking.transport.aborted

    assert asyncio.run(main()) == (False, True, False)


def test_as_many_files_may_be_open_as_connections_come():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        worker.allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4000, hard), hard)
        worker.allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4000, hard), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_has_gone_leaves_the_place_in_the_queue(recommender, monkeypatch):
    """While the thread computes: others must not be told that the queue is full of those that nobody waits for."""
    gate = Gate(recommender, monkeypatch, "recommend")
    app = Application(recommender, ServerOptions("run", queue=3, max_histories=3))

    async def main():
        async with running(app):
            clients = [Client(), Client(b'{"histories": [["i1"], ["i2"]]}'), Client(b'{"histories": [["i3"], ["i4"]]}')]
            tasks = [clients[0].ask(app)]
            await asyncio.to_thread(gate.entered.wait, 20)
            tasks.append(clients[1].ask(app))
            await asyncio.sleep(0.05)
            clients[1].gone.set()
            await asyncio.wait_for(tasks[1], 20)
            tasks.append(clients[2].ask(app))
            await asyncio.sleep(0.05)
            held = (await ask(app, "GET", "/metrics")).body.decode()
            gate.opened.set()
            await asyncio.gather(*tasks)
            return [each.sent[0]["status"] for each in clients[::2]], held, await ask(app, "GET", "/metrics")

    statuses, held, left = asyncio.run(main())
    assert statuses == [200, 200]
    assert gate.sizes == [1, 2]
    assert "plr_queue_users 3.0" in held
    assert "plr_queue_users 0.0" in left.body.decode()


def test_what_a_worker_that_was_killed_kept_is_not_counted():
    memory = metrics.MetricsMemory(2)
    counters = memory.counters(1)
    counters.start()
    counters.sessions(3, 4000)
    counters.queue(2)
    counters.end()
    text = memory.text()
    for line in ("plr_queue_users 0.0", "plr_sessions 0.0", "plr_sessions_bytes 0.0", "plr_worker_starts_total 1.0"):
        assert line in text.splitlines()
