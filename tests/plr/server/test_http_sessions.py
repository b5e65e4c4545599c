"""Sessions over HTTP: begun with a history, gone on with by what is new; those asked for last are kept."""

from __future__ import annotations

import asyncio

import pytest

from plr.server.options import ServerOptions
from plr.serving import Recommender
from tests.plr.models.helpers import small_config, small_model
from tests.plr.server.helpers import Gate, answers, ask, running

SERVE = "plr serve needs the extra: pip install -e '.[serve]'"
Application = pytest.importorskip("plr.server.app", reason=SERVE, exc_type=ModuleNotFoundError).Application
Sessions = pytest.importorskip("plr.server.sessions", reason=SERVE, exc_type=ModuleNotFoundError).Sessions

ITEMS = 29


@pytest.fixture(scope="module")
def recommender():
    return Recommender(small_model(ITEMS).float(), [f"i{item}" for item in range(ITEMS)], small_config())


@pytest.fixture
def application(recommender):
    return lambda **options: Application(recommender, ServerOptions("runs/first", **options))


def begin(history, name="s", **options):
    return "POST", "/recommend", {"session": {"id": name, "history": history}, **options}


def go_on(length, append=(), name="s", **options):
    return "POST", "/recommend", {"session": {"id": name, "length": length, "append": list(append)}, **options}


def as_json(rows):
    return [[{"item": each.item, "score": each.score} for each in row] for row in rows]


def test_answers_are_those_for_the_whole_history(application, recommender):
    history = [f"i{5 * place % ITEMS}" for place in range(20)]  # beyond max_length, 12
    first, *others, asked = answers(
        application(),
        begin(history[:2], k=4),
        *(go_on(length, history[length : length + 1], k=4, exclude=["i3"]) for length in range(2, len(history))),
        go_on(len(history), only=["i7", "i8"], exclude_seen=True),
    )
    assert first.json["session"] == {"id": "s", "length": 2}
    assert first.json["recommendations"] == as_json(recommender.recommend([history[:2]], 4))
    for place, answer in enumerate(others):
        assert answer.json["session"] == {"id": "s", "length": place + 3}
        expected = recommender.recommend([history[: place + 3]], 4, exclude=["i3"])
        assert answer.json["recommendations"] == as_json(expected)
    expected = recommender.recommend([history], 10, only=["i7", "i8"], exclude_seen=True)
    assert asked.json["recommendations"] == as_json(expected)


def test_at_most_so_many_of_a_category_in_a_session(recommender):
    categories = {f"i{item}": [f"c{item % 3}", f"d{item // 10}"] for item in range(ITEMS) if item % 5}
    app = Application(recommender, ServerOptions("run"), categories=recommender.categories_of(categories))
    history = [f"i{5 * place % ITEMS}" for place in range(14)]  # beyond max_length, 12
    found = answers(
        app,
        begin(history[:2], k=8, at_most=2),
        *(go_on(length, history[length : length + 1], k=8, at_most=1, exclude=["i2"]) for length in range(2, 14)),
        go_on(14, k=8),
    )
    limited = {"at_most": 1, "categories": categories, "exclude": ["i2"]}
    expected = [
        recommender.recommend([history[:2]], 8, at_most=2, categories=categories),
        *(recommender.recommend([history[:length]], 8, **limited) for length in range(3, 15)),
        recommender.recommend([history], 8),
    ]
    assert [answer.json["recommendations"] for answer in found] == list(map(as_json, expected))
    session = recommender.session(history[:3])
    assert [session.recommend(8, **limited)] == expected[1]
    assert [session.recommend(8)] != expected[1]


def test_histories_have_no_session_in_their_answer(application):
    (answer,) = answers(application(), ("POST", "/recommend", {"histories": [["i1"]]}))
    assert set(answer.json) == {"recommendations"}


def test_a_session_that_is_not_as_the_client_says_is_not_gone_on_with(application, recommender):
    unknown, begun, behind, again, retried = answers(
        application(), go_on(2, ["i3"]), begin(["i1", "i2"]), go_on(1, ["i3"]), go_on(2, ["i3"]), go_on(2, ["i3"])
    )
    assert (unknown.status, begun.status, behind.status, again.status, retried.status) == (404, 200, 409, 200, 409)
    assert unknown.error == (
        "the session is not here: it was never begun, or left for others; send its history as session.history"
    )
    assert retried.error == (
        "session.length must be 3, what the session holds; found 2; send its history as session.history"
    )
    assert again.json["recommendations"] == as_json(recommender.recommend([["i1", "i2", "i3"]]))


@pytest.mark.parametrize("filters", [{"only": ["i3"], "exclude": ["i3"]}, {"exclude": [f"i{i}" for i in range(ITEMS)]}])
def test_filters_that_leave_nothing_are_answered_as_for_a_history(application, filters):
    plain, begun = answers(
        application(), ("POST", "/recommend", {"histories": [["i1"]], **filters}), begin(["i1"], **filters)
    )
    assert (plain.status, plain.json["recommendations"]) == (200, [[]])
    assert (begun.status, begun.json["recommendations"]) == (200, [[]])


def test_what_is_refused_changes_nothing(application):
    limits = {"max_history": 4, "max_k": 7}
    begun, *refused, fine = answers(
        application(**limits),
        begin(["i1", "i2"]),
        go_on(2, ["i3", "x"]),
        go_on(2, ["i3"], only=["x"]),
        go_on(2, ["i3"], k=8),
        go_on(2, ["i3", "i4", "i5"]),
        begin(["x"], unknown="skip"),
        begin(["i1"] * 5),
        go_on(2, ["x", "i3"], unknown="skip"),
    )
    assert begun.status == fine.status == 200
    assert fine.json["session"]["length"] == 3
    for answer, message in zip(
        refused,
        (
            "items never seen in training: 'x'",
            "only names no item",
            "k must be from 1 to 7; found 8",
            "session.append: the session would have 5 items; at most 4 are accepted; begin it anew with its latest",
            "the session's history holds no item yet",
            "session.history must have 1 to 4 items; found 5",
        ),
        strict=True,
    ):
        assert answer.status == 422
        assert message in answer.error


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ("s", "session must be an object; found a text"),
        ({"history": ["i1"]}, "session: object missing required field `id`"),
        ({"id": "s"}, "session must have history, to begin it, or length, to go on with it; found neither"),
        ({"id": "s", "history": ["i1"], "length": 0}, "found both"),
        ({"id": "s", "history": ["i1"], "append": ["i2"]}, "session.append goes with session.length"),
        ({"id": "s", "history": []}, "session.history must have 1 to 1000 items; found 0"),
        ({"id": "", "history": ["i1"]}, "session.id must have 1 to 128 characters; found 0"),
        ({"id": "s" * 129, "history": ["i1"]}, "session.id must have 1 to 128 characters; found 129"),
        ({"id": 3, "history": ["i1"]}, "session.id must be a text; found a whole number"),
        ({"id": "s", "length": -1}, "session.length must be at least 0; found -1"),
        ({"id": "s", "length": 1.5}, "session.length must be a whole number; found a number"),
        ({"id": "s", "length": None}, "session.length must be a whole number; found null"),
        ({"id": "s", "length": 1, "append": "i1"}, "session.append must be an array; found a text"),
        ({"id": "s", "length": 1, "items": []}, "session has unknown field `items`"),
    ],
)
def test_what_is_no_session_is_named(application, session, message):
    (refused,) = answers(application(), ("POST", "/recommend", {"session": session}))
    assert refused.status == 422
    assert message in refused.error


def test_a_body_has_histories_or_a_session(application):
    neither, both, none_kept = answers(
        application(sessions=0),
        ("POST", "/recommend", {}),
        ("POST", "/recommend", {"histories": [["i1"]], "session": {"id": "s", "history": ["i1"]}}),
        begin(["i1"]),
    )
    assert neither.error == "the body must have histories or session, one of the two; found neither"
    assert both.error == "the body must have histories or session, one of the two; found both"
    assert (none_kept.status, none_kept.error) == (
        422, "session: this server keeps none (--sessions 0); send histories",
    )  # fmt: skip


def test_the_session_that_was_not_asked_for_longest_goes(application):
    *_, kept, gone, newest = answers(
        application(sessions=2),
        begin(["i1"], "a"),
        begin(["i2"], "b"),
        go_on(1, ["i3"], "a"),
        begin(["i4"], "c"),
        go_on(2, ["i3"], "a"),
        go_on(1, ["i3"], "b"),
        go_on(1, ["i3"], "c"),
    )
    assert (kept.status, gone.status, newest.status) == (200, 404, 200)


def test_memory_bounds_the_sessions(recommender):
    def of(length):
        session = recommender.session([f"i{item}" for item in range(length)])
        session.recommend(3)
        return session

    sessions = Sessions(100, 3 * of(3).bytes_kept)
    for name in "abcdef":
        sessions.put(name, of(3))
    assert 1 <= len(sessions) <= 2
    assert sessions.get("a") is None
    assert sessions.get("f") is not None
    assert 0 < sessions.bytes <= 3 * of(3).bytes_kept
    sessions.put("f", of(3))
    assert len(sessions) <= 2
    tiny = Sessions(100, 1)
    tiny.put("a", of(3))
    tiny.put("b", of(3))
    assert (len(tiny), tiny.get("a")) == (1, None)


def test_metrics_say_how_many_sessions_there_are_and_what_they_take(application, recommender, monkeypatch):
    def gauges(answer):
        lines = [line.split() for line in answer.body.decode().splitlines()]
        assert ["#", "TYPE", "plr_sessions", "gauge"] in lines
        return [float(line[1]) for name in ("plr_sessions", "plr_sessions_bytes") for line in lines if line[0] == name]

    metrics = ("GET", "/metrics")
    app, rank = application(sessions=2), recommender.rank
    none, _, one, _, two, _, _, still, _, fewer = answers(
        app, metrics, begin(["i1"], "a"), metrics, begin(["i2", "i3"], "b"), metrics, begin(["i4"], "c"),
        begin(["x"], "d"), metrics, go_on(0, name="c"), metrics,
    )  # fmt: skip
    assert gauges(none) == [0, 0]
    assert [gauges(each)[0] for each in (one, two, still, fewer)] == [1, 2, 2, 2]
    assert 0 < gauges(one)[1] < gauges(two)[1]
    assert gauges(still) == gauges(fewer)
    (ended,) = answers(app, metrics)  # the life before is over, and its sessions with it
    assert gauges(ended) == [0, 0]

    def failing(*arguments, **options):
        if options.get("states") is not None and len(options["states"].states) and arguments[0].lengths[0] == 2:
            raise RuntimeError("a failure of the server's own")
        return rank(*arguments, **options)

    monkeypatch.setattr(recommender, "rank", failing)
    *_, left = answers(app, begin(["i1"], "a"), begin(["i5"], "b"), go_on(1, ["i2"], "a"), metrics)
    assert gauges(left)[0] == 1


def test_a_session_whose_ranking_fails_is_left(application, recommender, monkeypatch):
    """It holds the new items already: the client, who was told of no success, would send them again."""
    app, rank = application(), recommender.rank
    calls = iter([False, True, False])

    def failing(*arguments, **options):
        if next(calls):
            raise RuntimeError("a failure of the server's own")
        return rank(*arguments, **options)

    monkeypatch.setattr(recommender, "rank", failing)
    begun, failed, repeated, anew = answers(
        app, begin(["i1"]), go_on(1, ["i2"]), go_on(1, ["i2"]), begin(["i1", "i2"])
    )
    assert [each.status for each in (begun, failed, repeated, anew)] == [200, 500, 404, 200]
    assert anew.json["session"]["length"] == 2


@pytest.fixture
def together(recommender, monkeypatch):
    """Answers requests for sessions of which the first is computed while the others come in; how many each call had."""

    def together(app, *bodies):
        rank = recommender.rank
        gate = Gate(recommender, monkeypatch, "rank")

        async def main():
            async with running(app):
                tasks = [asyncio.create_task(ask(app, *bodies[0]))]
                await asyncio.to_thread(gate.entered.wait, 20)
                for body in bodies[1:]:
                    tasks.append(asyncio.create_task(ask(app, *body)))
                    await asyncio.sleep(0.01)  # in their order
                gate.opened.set()
                return await asyncio.gather(*tasks)

        found = asyncio.run(main())
        monkeypatch.setattr(recommender, "rank", rank)
        return found, gate.sizes

    return together


def test_sessions_that_wait_are_answered_together_and_as_alone(application, recommender, together):
    found, sizes = together(
        application(max_history=15, sessions=8),
        begin(["i0"], "first"),
        begin(["i1", "i2"], "a", k=3),
        begin(["i3"], "b", exclude=["i4", "i5"]),
        begin([f"i{item}" for item in range(14)], "c"),  # beyond max_length, 12
        go_on(2, ["i3"], "nobody"),
        begin(["i4"], "d", only=["i7", "i8"]),
        begin(["i5"], "e", exclude_seen=True),
        begin(["x"], "f"),
        go_on(2, ["i6"], "a", k=5),
        go_on(1, ["i6"], "b"),
        go_on(2, ["i6"], "a"),  # sent twice
        go_on(3, ["i7"], "a"),
        go_on(14, ["i7", "i8"], "c"),
    )
    assert [each.status for each in found] == [200] * 4 + [404, 200, 200, 422, 200, 200, 409, 200, 422]
    # The first; a, b, c, then d and e by themselves; a, b; a again.
    assert sizes == [1, 3, 1, 1, 2, 1]
    expected = {
        0: recommender.recommend([["i0"]]),
        1: recommender.recommend([["i1", "i2"]], 3),
        2: recommender.recommend([["i3"]], exclude=["i4", "i5"]),
        3: recommender.recommend([[f"i{item}" for item in range(14)]]),
        5: recommender.recommend([["i4"]], only=["i7", "i8"]),
        6: recommender.recommend([["i5"]], exclude_seen=True),
        8: recommender.recommend([["i1", "i2", "i6"]], 5),
        9: recommender.recommend([["i3", "i6"]]),
        11: recommender.recommend([["i1", "i2", "i6", "i7"]]),
    }
    for place, rows in expected.items():
        assert found[place].json["recommendations"] == as_json(rows)
    assert [found[place].json["session"]["length"] for place in (8, 9, 11)] == [3, 2, 4]


def test_of_sessions_together_the_one_that_fails_is_left(application, recommender, together, monkeypatch):
    rank = recommender.rank

    def failing(histories, *arguments, **options):
        if any(3 in history for history in histories.lists()):
            raise RuntimeError("a failure of the server's own")
        return rank(histories, *arguments, **options)

    monkeypatch.setattr(recommender, "rank", failing)
    found, _ = together(
        application(), begin(["i0"], "first"), begin(["i1"], "a"), begin(["i2"], "b"), go_on(1, ["i3"], "a"),
        go_on(1, ["i4"], "b"), go_on(2, ["i5"], "a"), go_on(2, ["i5"], "b"),
    )  # fmt: skip
    assert [each.status for each in found] == [200, 200, 200, 500, 200, 404, 200]
    assert found[-1].json["session"]["length"] == 3
