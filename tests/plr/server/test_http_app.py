"""The application, asked in process: its answers are the recommender's, and what it cannot answer it says."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from plr.errors import RunError
from plr.server.options import ServerOptions
from plr.serving import Recommender
from plr.serving.similar import similar_items
from tests.plr.models.helpers import small_config, small_model
from tests.plr.server.helpers import Gate, answers, ask, running

SERVE = "plr serve needs the extra: pip install -e '.[serve]'"
Application = pytest.importorskip("plr.server.app", reason=SERVE, exc_type=ModuleNotFoundError).Application
Refusal = pytest.importorskip("plr.server.messages", reason=SERVE, exc_type=ModuleNotFoundError).Refusal
check = pytest.importorskip("plr.server.generation", reason=SERVE, exc_type=ModuleNotFoundError).check

ITEMS = 29
TOKEN = "correct-horse-battery"
LIMITS = {"max_histories": 4, "max_history": 15, "max_k": 7, "max_ids": 3, "max_body": 2000}


@pytest.fixture(scope="module")
def recommender():
    return Recommender(small_model(ITEMS).float(), [f"i{item}" for item in range(ITEMS)], small_config())


@pytest.fixture
def application(recommender):
    def application(reload=None, **options):
        return Application(recommender, ServerOptions("runs/first", **options), reload=reload)

    return application


def as_json(rows):
    return [[{"item": each.item, "score": each.score} for each in row] for row in rows]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"histories": [["i1", "i2"], ["i7"]]}, {}),
        ({"histories": [["i1", "i2"]], "k": 3, "exclude_seen": True}, {"k": 3, "exclude_seen": True}),
        ({"histories": [["i1"], ["i2"]], "exclude": ["i3", "i4", "x"]}, {"exclude": ["i3", "i4", "x"]}),
        ({"histories": [["i1"], ["i2"]], "only": ["i3", "i4"], "exclude": []}, {"only": ["i3", "i4"]}),
        ({"histories": [["i1", "x"]], "unknown": "skip", "exclude": None}, {"unknown": "skip"}),
    ],
)
def test_answers_are_those_of_the_recommender(application, recommender, body, options):
    (answer,) = answers(application(), ("POST", "/recommend", body))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found = answer.json["recommendations"]
    assert found == as_json(recommender.recommend(body["histories"], **options))


def test_similar_items_are_those_of_the_python_function(application, recommender):
    (answer,) = answers(application(), ("POST", "/similar", {"items": ["i3", "i4"], "k": 5}))
    assert answer.json["similar"] == as_json(similar_items(recommender, ["i3", "i4"], 5))


def test_ids_may_be_numbers():
    recommender = Recommender(small_model(5).float(), list("01234"), small_config())
    app = Application(recommender, ServerOptions("run"))
    one, other, k = answers(
        app,
        ("POST", "/recommend", {"histories": [[1, 2]]}),
        ("POST", "/recommend", {"histories": [["1", "2"]]}),
        ("POST", "/recommend", {"histories": [[1]], "k": 6}),
    )
    assert one.json == other.json
    assert len(one.json["recommendations"][0]) == 5  # all, where there are fewer than ten
    assert k.error == "k must be from 1 to 5; found 6"


@pytest.fixture
def gate(recommender, monkeypatch):
    return Gate(recommender, monkeypatch, "recommend")


def answered_together(app, bodies, gate):
    """The answers to requests of which the first is computed while the others come in, and wait."""

    async def main():
        async with running(app):
            first = asyncio.create_task(ask(app, "POST", "/recommend", bodies[0]))
            await asyncio.to_thread(gate.entered.wait, 20)
            others = [asyncio.create_task(ask(app, "POST", "/recommend", body)) for body in bodies[1:]]
            await asyncio.sleep(0.1)
            gate.opened.set()
            return await asyncio.gather(first, *others)

    return asyncio.run(main())


def test_requests_that_wait_are_answered_together_and_as_alone(application, recommender, gate):
    bodies = [
        {"histories": [[f"i{(3 * n + m) % ITEMS}" for m in range(1 + n % 5)]] * (1 + n % 2), "k": 1 + n % 7}
        for n in range(12)
    ]
    bodies[3]["exclude"] = ["i1", "i2"]
    bodies[5]["only"] = ["i1", "i2"]
    bodies[7]["histories"] = [["x"]]
    found = answered_together(application(), bodies, gate)
    # The first alone; all but one that wait, which fail for one and are asked alone; that with `only`.
    assert (gate.sizes[0], gate.sizes[1]) == (1, sum(len(body["histories"]) for body in bodies[1:]) - 2)
    for body, answer in zip(bodies, found, strict=True):
        if body["histories"] == [["x"]]:
            assert answer.status == 422
            assert answer.error.startswith("history 0: items never seen in training: 'x'")
        else:
            assert answer.json["recommendations"] == as_json(recommender.recommend(**body))


def test_answers_together_have_as_many_items_as_each_asks_for(application, recommender, gate):
    bodies = [{"histories": [[f"i{n}"]] * (1 + n % 2), "k": 1 + (5 * n) % 7} for n in range(6)]
    found = answered_together(application(), bodies, gate)
    assert gate.sizes == [1, sum(len(body["histories"]) for body in bodies[1:])]
    for body, answer in zip(bodies, found, strict=True):
        assert answer.json["recommendations"] == as_json(recommender.recommend(**body))


CATEGORIES = {f"i{item}": [f"c{item % 3}", f"d{item // 10}"] for item in range(ITEMS) if item % 5}


@pytest.mark.parametrize("given", ["categories", "file"])
def test_at_most_so_many_of_a_category(recommender, gate, tmp_path, given):
    """As the recommender answers; requests for the same number of them go together."""
    path = tmp_path / "items.json"
    path.write_text(json.dumps({item: {"kind": kinds, "shop": "s"} for item, kinds in CATEGORIES.items()}))
    if given == "file":
        options, categories = {"categories": str(path), "category_field": "kind"}, None
    else:
        options, categories = {}, recommender.categories_of(CATEGORIES)
    app = Application(recommender, ServerOptions("runs/first", **options), categories=categories)
    bodies = [
        {"histories": [["i1"], ["i2", "i3"]], "k": 8, "at_most": 2},
        {"histories": [["i1"]], "k": 9, "at_most": 1},
        {"histories": [["i7"]], "k": 3, "at_most": 2, "exclude": ["i4"]},
        {"histories": [["i1"]], "k": 9, "at_most": 1, "only": [f"i{item}" for item in range(9)], "exclude_seen": True},
        {"histories": [["i1"]], "k": 5, "at_most": None},
        {"histories": [["i8"], ["i9"]], "k": 7, "at_most": 2},
    ]
    found = answered_together(app, bodies, gate)
    assert gate.sizes == [2, 1, 3, 1, 1]
    plain = []
    for body, answer in zip(bodies, found, strict=True):
        limit = {} if body["at_most"] is None else {"categories": CATEGORIES}
        assert answer.json["recommendations"] == as_json(recommender.recommend(**body, **limit))
        plain.append(answer.json["recommendations"] == as_json(recommender.recommend(**body | {"at_most": None})))
    assert plain.count(True) < 3  # the limit changed the other answers


def test_a_full_queue_and_time_that_is_over(application, gate):
    app = application(queue=4, timeout=0.3, **LIMITS)

    async def main():
        async with running(app):
            begun = asyncio.create_task(ask(app, "POST", "/recommend", {"histories": [["i1"]] * 2}))
            await asyncio.to_thread(gate.entered.wait, 20)
            waiting = asyncio.create_task(ask(app, "POST", "/recommend", {"histories": [["i1"]] * 2}))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            refused = await ask(app, "POST", "/recommend", {"histories": [["i1"]]})
            found = [refused, await begun, await waiting, (await ask(app, "GET", "/metrics")).body.decode()]
            gate.opened.set()
            for _ in range(500):  # until the thread has noticed that nobody waits
                await asyncio.sleep(0.01)
                text = (await ask(app, "GET", "/metrics")).body.decode()
                if "plr_queue_users 0.0" in text:
                    break
            return [*found, text, await ask(app, "POST", "/recommend", {"histories": [["i1"]]})]

    refused, begun, waiting, before, after, later = asyncio.run(main())
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.error.startswith("4 users may wait")
    assert (begun.status, begun.error) == (504, "the answer was not ready within 0.3 s")
    assert (waiting.status, waiting.error) == (503, "the answer was not begun within 0.3 s")
    assert "plr_queue_users 2.0" in before  # who was refused 503 does not wait
    assert "plr_queue_users 0.0" in after
    assert later.status == 200
    assert gate.sizes == [2, 1]  # what nobody waits for is not computed


HISTORY = {"histories": [["i1"]]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/recommend", b"", 400, "JSON in UTF-8"),
        ("/recommend", b"{", 400, "JSON in UTF-8"),
        ("/recommend", b'{"histories": [["\xff"]]}', 400, "JSON in UTF-8"),
        ("/recommend", b"[" * 1500, 422, "the body must be an object; found an array"),
        ("/recommend", [], 422, "the body must be an object; found an array"),
        ("/recommend", {}, 422, "the body must have histories or session, one of the two; found neither"),
        ("/similar", {}, 422, "the body: object missing required field `items`; accepted are items, k"),
        ("/recommend", {**HISTORY, "top": 3}, 422, "the body has unknown field `top`; accepted are histories, k, "),
        ("/recommend", {"histories": "i1"}, 422, "histories must be an array; found a text"),
        ("/recommend", {"histories": ["i1"]}, 422, r"histories\[0\] must be an array; found a text"),
        ("/recommend", {"histories": [["i1", None]]}, 422, r"histories\[0\]\[1\] must be a whole number or a text"),
        ("/recommend", {"histories": [["i1", 1.5]]}, 422, r"histories\[0\]\[1\] must be .*; found a number"),
        ("/recommend", {"histories": [["i1"], []]}, 422, r"histories\[1\] must have 1 to 15 items; found 0"),
        ("/recommend", {"histories": [["i1"] * 16]}, 422, r"histories\[0\] must have 1 to 15 items; found 16"),
        ("/recommend", {"histories": []}, 422, "histories must have 1 to 4 histories; found 0"),
        ("/recommend", {"histories": [["i1"]] * 5}, 422, "histories must have 1 to 4 histories; found 5"),
        ("/recommend", {**HISTORY, "k": 0}, 422, "k must be from 1 to 7; found 0"),
        ("/recommend", {**HISTORY, "k": 8}, 422, "k must be from 1 to 7; found 8"),
        ("/recommend", {**HISTORY, "k": 10**30}, 422, "k must be from 1 to 7; found 1000000"),
        ("/recommend", {**HISTORY, "k": True}, 422, "k must be a whole number; found true or false"),
        ("/recommend", {**HISTORY, "exclude": ["i1"] * 4}, 422, "exclude must have 0 to 3 ids; found 4"),
        ("/recommend", {**HISTORY, "only": ["i1"] * 4}, 422, "only must have 0 to 3 ids; found 4"),
        ("/recommend", {**HISTORY, "only": []}, 422, "only names no item that training has seen"),
        ("/recommend", {**HISTORY, "only": [[]]}, 422, r"only\[0\] must be a whole number or a text; found an array"),
        ("/recommend", {**HISTORY, "unknown": "no"}, 422, "unknown: found 'no'; accepted are 'error', 'skip'"),
        ("/recommend", {"histories": [["i1", "x"]]}, 422, "history 0: items never seen in training: 'x'"),
        ("/recommend", {"histories": [["x"]], "unknown": "skip"}, 422, "history 0 holds no item"),
        ("/recommend", {**HISTORY, "at_most": 0}, 422, "at_most must be from 1 to 7; found 0"),
        ("/recommend", {**HISTORY, "at_most": 10**30}, 422, "at_most must be from 1 to 7; found 1000000"),
        ("/recommend", {**HISTORY, "at_most": "2"}, 422, "at_most must be a whole number or null; found a text"),
        ("/recommend", {**HISTORY, "at_most": 2}, 422, "at_most: this server knows no categories of items; start it"),
        ("/similar", {"items": []}, 422, "items must have 1 to 4 items; found 0"),
        ("/similar", {"items": ["i1", "x"]}, 422, "items never seen in training: 'x'"),
        ("/similar", {"items": ["i1"], "k": 8}, 422, "k must be from 1 to 7; found 8"),
        ("/recommend", {"histories": [["i" * 2000]]}, 413, "the body must have at most 2000 bytes; found 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_named(application, path, body, status, message):
    refused, fine = answers(application(**LIMITS), ("POST", path, body), ("POST", "/recommend", HISTORY))
    assert refused.status == status
    assert re.match(message, refused.error) or message in refused.error
    assert fine.status == 200


def test_paths_methods_and_kinds(application):
    app = application()

    async def main():
        async with running(app):
            return [
                await ask(app, "GET", "/nothing"),
                await ask(app, "GET", "/recommend"),
                await ask(app, "POST", "/health"),
                await ask(app, "HEAD", "/health"),
                await ask(app, "POST", "/recommend", HISTORY, kind="text/plain"),
                await ask(app, "POST", "/recommend", HISTORY, kind="application/json; charset=utf-8"),
                await ask(app, "GET", "/api/health", root_path="/api"),
                await ask(app, "GET", "/ready", query=b"probe=1"),
                await ask(app, "POST", "/recommend", HISTORY, query=b"k=3"),
            ]

    nothing, recommend, health, head, text, charset, mounted, ready, query = asyncio.run(main())
    assert (nothing.status, nothing.error.count("/recommend")) == (404, 1)
    assert (recommend.status, recommend.headers["allow"]) == (405, "POST")
    assert (health.status, health.headers["allow"]) == (405, "GET, HEAD")
    assert (head.status, head.body) == (200, b"")
    assert (text.status, text.error) == (415, "the header Content-Type must be application/json; found 'text/plain'")
    assert charset.status == 200
    assert mounted.json == {"status": "ok"}
    assert query.status == 422  # it would be ignored
    assert query.error == "what is asked must be in the body, not behind the path; found 'k=3'"
    assert ready.json == {
        "status": "ready", "run": "first", "backbone": "sasrec", "method": "plr", "items": ITEMS, "max_length": 12,
    }  # fmt: skip


def test_bodies_in_parts_too_large_and_too_slow(application):
    app = application(timeout=0.2, **LIMITS)

    async def parts(*given, pause=0.0):
        for part in given:
            yield part
            await asyncio.sleep(pause)

    async def main():
        async with running(app):
            fine = await ask(app, "POST", "/recommend", chunks=parts(b'{"histories":', b' [["i1"]]}'))
            large = await ask(app, "POST", "/recommend", chunks=parts(*[b" " * 1000] * 5))
            endless = await ask(app, "POST", "/recommend", chunks=parts(*[b" " * 1000] * 500))
            slow = await ask(app, "POST", "/recommend", chunks=parts(b'{"histories":', b' [["i1"]]}', pause=0.4))
            waits = [("content-length", "1000000"), ("expect", "100-continue")]
            asks_first = await ask(app, "POST", "/recommend", headers=waits)
            stated = [("content-length", "5000")]
            dripped = await ask(app, "POST", "/recommend", chunks=parts(b" ", b" ", pause=0.4), headers=stated)
            return fine, large, endless, slow, asks_first, dripped

    fine, large, endless, slow, asks_first, dripped = asyncio.run(main())
    assert fine.status == 200
    assert (large.status, large.error) == (413, "the body must have at most 2000 bytes; found 5000")
    assert (endless.status, endless.error) == (413, "the body must have at most 2000 bytes; found 33000")
    assert (slow.status, slow.error) == (408, "the body must arrive within 0.2 s; found 13 bytes by then")
    assert (asks_first.status, asks_first.error) == (413, "the body must have at most 2000 bytes; found 1000000")
    assert (dripped.status, dripped.error) == (413, "the body must have at most 2000 bytes; found 5000")
    assert {answer.headers["connection"] for answer in (large, endless, slow, asks_first, dripped)} == {"close"}


def test_a_token_is_asked_for_where_there_is_one(application):
    async def reload():
        return "done"

    def requests(app, path, method="POST"):
        headers = [[], [("authorization", "Bearer wrong")], [("authorization", f"Basic {TOKEN}")],
                   [("authorization", f"Bearer {TOKEN}")]]  # fmt: skip

        async def main():
            async with running(app):
                return [await ask(app, method, path, HISTORY, headers=each) for each in headers]

        return asyncio.run(main())

    app = application(reload, token=TOKEN)
    for path in ("/recommend", "/reload"):
        *refused, right = requests(app, path)
        assert [answer.status for answer in refused] == [401] * 3
        assert all(answer.headers["www-authenticate"] == "Bearer" and TOKEN not in answer.error for answer in refused)
        assert right.status == 200
    assert right.json == {"message": "done"}
    assert [answer.status for answer in requests(app, "/metrics", "GET")] == [401, 401, 401, 200]
    assert [answer.status for answer in requests(app, "/health", "GET")] == [200] * 4
    assert [answer.status for answer in requests(application(reload), "/reload")] == [403] * 4
    assert [answer.status for answer in requests(application(), "/reload")] == [404] * 4


def test_a_run_that_was_not_loaded_is_a_conflict(application):
    async def reload():
        raise Refusal(409, "the weights are damaged")

    app = application(reload, token=TOKEN)

    async def main():
        async with running(app):
            return await ask(app, "POST", "/reload", headers=[("authorization", f"bearer {TOKEN}")])

    answer = asyncio.run(main())
    assert (answer.status, answer.error) == (409, "the weights are damaged")


def test_mistakes_are_logged_without_ids(application, recommender, monkeypatch, caplog):
    def mistaken(histories, *_, **__):
        raise KeyError(histories[0][0])

    monkeypatch.setattr(recommender, "recommend", mistaken)
    with caplog.at_level(logging.DEBUG):
        failed, fine = answers(
            application(), ("POST", "/recommend", {"histories": [["secret-7"]]}), ("GET", "/health")
        )
    assert failed.status == 500
    assert "secret-7" not in failed.error
    assert "KeyError" in caplog.text
    assert "in mistaken" in caplog.text
    assert "secret-7" not in caplog.text
    assert fine.status == 200


def test_nothing_is_logged_of_requests(application, caplog):
    with caplog.at_level(logging.DEBUG):
        answers(
            application(), ("POST", "/recommend", HISTORY), ("POST", "/recommend", {"histories": [["x"]]}),
            ("GET", "/i7?user=u1"),
        )  # fmt: skip
    assert not [record for record in caplog.records if record.name.startswith("plr")]


def test_clients_are_told_to_close_while_draining(application):
    app = application()
    app.draining = True
    too_large = ("POST", "/recommend", b" " * (app._options.max_body + 1))  # whose refusal says so by itself
    for answer in answers(app, ("GET", "/health"), too_large):
        assert answer.headers["connection"] == "close"


def test_metrics_count_what_was_answered(application):
    *_, metrics = answers(
        application(),
        ("POST", "/recommend", {"histories": [["i1"], ["i2"]]}),
        ("POST", "/recommend", HISTORY),
        ("POST", "/recommend", {}),
        ("POST", "/similar", {"items": ["i1"]}),
        ("GET", "/i7"),
        ("GET", "/metrics"),
    )
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = metrics.body.decode().splitlines()
    samples = {}
    for line in lines:
        if not line.startswith("#"):
            match = re.fullmatch(r'(plr_\w+(?:\{\w+="[^"]*"(?:,\w+="[^"]*")*\})?) (\S+)', line)
            samples[match[1]] = float(match[2])
    assert len(samples) == sum(not line.startswith("#") for line in lines)
    assert samples['plr_requests_total{path="/recommend",status="200"}'] == 2
    assert samples['plr_requests_total{path="/recommend",status="422"}'] == 1
    assert samples['plr_requests_total{path="other",status="404"}'] == 1
    assert (samples["plr_users_total"], samples["plr_batches_total"], samples["plr_queue_users"]) == (4, 3, 0)
    buckets = [value for name, value in samples.items() if name.startswith('plr_request_seconds_bucket{path="/rec')]
    assert buckets == sorted(buckets)
    assert buckets[-1] == samples['plr_request_seconds_count{path="/recommend"}'] == 3
    assert 0 < samples['plr_request_seconds_sum{path="/recommend"}'] < 60
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_the_document_describes_what_is_accepted(application):
    async def reload():
        return ""

    (answer,) = answers(application(reload, **LIMITS), ("GET", "/openapi.json"))
    document = answer.json
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/recommend", "/similar", "/health", "/ready", "/metrics", "/openapi.json", "/reload",
    }  # fmt: skip
    for reference in re.findall(r'"\$ref":\s*"#/components/schemas/(\w+)"', answer.body.decode()):
        assert reference in document["components"]["schemas"]
    fields = document["components"]["schemas"]["RecommendRequest"]["properties"]
    assert (fields["histories"]["minItems"], fields["histories"]["maxItems"]) == (1, 4)
    assert (fields["histories"]["items"]["minItems"], fields["histories"]["items"]["maxItems"]) == (1, 15)
    (number,) = [each for each in fields["at_most"]["anyOf"] if each["type"] == "integer"]
    assert (number["minimum"], number["maximum"]) == (1, 7)
    assert (fields["k"]["minimum"], fields["k"]["maximum"], fields["k"]["default"]) == (1, 7, 7)
    assert "securitySchemes" not in document["components"]
    async def with_token():
        app = application(token=TOKEN)
        async with running(app):
            return await ask(app, "GET", "/openapi.json", headers=[("authorization", f"Bearer {TOKEN}")])

    document = asyncio.run(with_token()).json
    assert document["paths"]["/recommend"]["post"]["security"] == [{"token": []}]
    assert "/reload" not in document["paths"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["i1", "i2", "i28"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = ("histories", "items", "k", "exclude", "only", "exclude_seen", "unknown", "at_most", "where", "session")
SESSION = st.dictionaries(st.sampled_from(("id", "history", "length", "append")), JSON | st.just(["i1"]), max_size=4)
BODIES = (
    st.dictionaries(
        st.sampled_from(FIELDS), JSON | st.just([["i1"]]) | st.integers(-2, 9) | SESSION, max_size=4
    ).map(json.dumps)
    | JSON.map(json.dumps)
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(bodies=st.lists(BODIES.map(str.encode) | st.binary(max_size=30), min_size=1, max_size=8))
def test_malformed_bodies_are_refused_and_nothing_breaks(recommender, bodies):
    categories = recommender.categories_of(CATEGORIES)
    app = Application(recommender, ServerOptions("run", **LIMITS), categories=categories)
    requests = [("POST", path, body) for body in bodies for path in ("/recommend", "/similar")]
    *found, fine = answers(app, *requests, ("POST", "/recommend", HISTORY))
    for answer in found:
        assert answer.status in (200, 400, 404, 409, 422)
        if answer.status != 200:
            assert answer.error
    assert fine.status == 200


def test_a_damaged_run_is_not_served(recommender):
    check(recommender)
    model = small_model(5).float()
    with torch.no_grad():
        model.items.embedding.weight[2, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        check(Recommender(model, list("abcde"), small_config()))
