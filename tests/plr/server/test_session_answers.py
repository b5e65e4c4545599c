"""Requests for sessions that are answered together, where few sessions may be kept: as one after the other."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from tests.plr.models.helpers import small_config, small_model

SERVE = "plr serve needs the extra: pip install -e '.[serve]'"
module = pytest.importorskip("plr.server.session_answers", reason=SERVE, exc_type=ModuleNotFoundError)
from msgspec import UNSET  # noqa: E402

from plr.server.messages import Recommendations, Refusal  # noqa: E402
from plr.server.sessions import Sessions  # noqa: E402
from plr.serving import Recommender  # noqa: E402

ITEMS = 29


@pytest.fixture(scope="module")
def recommender():
    return Recommender(small_model(ITEMS).float(), [f"i{item}" for item in range(ITEMS)], small_config())


class Server:
    """What answers for sessions, with so many of them at most."""

    def __init__(self, recommender, most, most_bytes=1 << 30):
        self.sessions = Sessions(most, most_bytes)
        counters = SimpleNamespace(sessions=lambda *_: None)
        self.answer = module.SessionAnswers(recommender, self.sessions, counters, None, 8)

    def kept(self):
        """The sessions, that asked for longest ago first, and their memory."""
        return [(name, session.history) for name, (session, _) in self.sessions._sessions.items()], self.sessions.bytes


def asked(name, *, history=UNSET, length=UNSET, append=UNSET, **options):
    session = SimpleNamespace(id=name, history=history, length=length, append=append)
    defaults = {"k": 3, "exclude": None, "only": None, "exclude_seen": None, "unknown": "error", "at_most": None}
    return SimpleNamespace(session=session, **{**defaults, **options})


def shown(answer):
    if isinstance(answer, Recommendations):
        return answer.recommendations, answer.session.length
    return type(answer), str(answer), getattr(answer, "status", None)


def assert_same(recommender, requests, *limits, calls=None):
    together, alone = Server(recommender, *limits), Server(recommender, *limits)
    found = []
    while len(found) < len(requests):
        found += together.answer(requests[len(found) : len(found) + (calls or len(requests))])
    expected = [answer for request in requests for answer in alone.answer([request])]
    assert list(map(shown, found)) == list(map(shown, expected))
    assert together.kept() == alone.kept()
    return found


def test_a_session_that_one_before_it_leaves_no_room_for_is_not_gone_on_with(recommender):
    """Of a, b and c two may be kept: a is left for c, so that going on with it leaves b where it is."""
    found = assert_same(
        recommender,
        [
            asked("a", history=["i1"]),
            asked("b", history=["i2"]),
            asked("b", length=1, append=["i3"]),  # another call of the engine: b occurs twice
            asked("c", history=["i4"]),
            asked("a", length=1, append=["i5"]),
            asked("b", length=2, append=["i6"]),
        ],
        2,
    )
    assert isinstance(found[4], Refusal)
    assert found[4].status == 404
    assert found[5].session.length == 3


def test_who_is_refused_or_fails_keeps_the_order(recommender):
    """Groups of other options are computed after one another, and kept in the order of the requests."""
    assert_same(
        recommender,
        [
            asked("a", history=["i1"], exclude_seen=True),
            asked("b", history=["i2"], exclude_seen=False),
            asked("c", history=["i3"], exclude_seen=True),
            asked("d", history=["x"]),
            asked("a", length=7),
            asked("b", length=1, append=["i4"], only=["x"]),
            asked("b", length=1, append=["x", "i4"], unknown="skip"),
        ],
        2,
    )


@pytest.mark.parametrize("limits", [(1,), (2,), (3,), (100, 12_000), (100, 1)])
@pytest.mark.parametrize("seed", range(8))
def test_any_requests(recommender, monkeypatch, limits, seed):
    """With failures of ranking among them, in calls of one to all requests."""
    rank = recommender.rank

    def failing(histories, *arguments, **options):
        if any(13 in history for history in histories.lists()):
            raise RuntimeError("a failure of the server's own")
        return rank(histories, *arguments, **options)

    monkeypatch.setattr(recommender, "rank", failing)
    draw = random.Random(seed)
    lengths = dict.fromkeys("abcd", 1)  # what clients may think
    requests = []
    for _ in range(40):
        name = draw.choice("abcd")
        items = [f"i{draw.randrange(16)}" for _ in range(draw.randint(1, 3))]
        options = {"exclude_seen": draw.choice([None, True]), "only": draw.choice([None, None, ["i1", "i2", "i20"]])}
        if draw.random() < 0.4:
            requests.append(asked(name, history=items, **options))
            lengths[name] = len(items)
        else:
            requests.append(asked(name, length=lengths[name], append=items, **options))
            lengths[name] += len(items)
    found = assert_same(recommender, requests, *limits, calls=draw.choice([2, 5, 40]))
    assert any(isinstance(answer, Recommendations) for answer in found)
    assert any(isinstance(answer, Refusal) for answer in found)
