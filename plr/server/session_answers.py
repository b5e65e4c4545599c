"""Answers to requests of sessions, several at once: what is new of all of them is one call of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from plr.server.batches import as_failure
from plr.server.messages import Recommendations, Refusal, SessionState
from plr.server.metrics import Counters
from plr.server.sessions import Sessions
from plr.serving import Recommender, Session
from plr.serving.categories import CategoryLimit
from plr.serving.ragged import Ragged
from plr.serving.session import rank_sessions

__all__ = ["SessionAnswers"]


class SessionAnswers:
    """Begins sessions, goes on with them and ranks for them. Of the thread that computes.

    Args:
        recommender: of the run.
        sessions: those that are kept.
        counters: where their number is written.
        categories: of the items, if they are known.
        most: items of a history.
    """

    def __init__(
        self, recommender: Recommender, sessions: Sessions, counters: Counters, categories: Ragged | None, most: int
    ) -> None:
        self._recommender, self._sessions, self._counters = recommender, sessions, counters
        self._categories, self._most = categories, most

    def __call__(self, requests: list[Any]) -> list[Any]:
        """Return for each request its answer, or the error that its client gets; never raises one itself.

        As one request after the other, in which sessions are left for others too: one for a session that another one
        before it is for sees what that one left. Where a request is refused its session stays as it was; where ranking
        fails the session is left, as it has the new items already and its client was not told so.
        """
        answers: list[Any] = []
        for part in _of_different_sessions(requests):
            answers += self._answer([requests[place] for place in part])
        self._counters.sessions(len(self._sessions), self._sessions.bytes)
        return answers

    def _answer(self, requests: list[Any]) -> list[Any]:
        """Answer requests for different sessions: first all are computed, and then kept in their order."""
        taken = [self._taken(request) for request in requests]
        alike: dict[Any, list[int]] = {}
        for place, (request, each) in enumerate(zip(requests, taken, strict=True)):
            if each.session is not None:
                # A list of allowed items is read for its request alone.
                option = request.exclude_seen, request.at_most, place if request.only is not None else None
                alike.setdefault(option, []).append(place)
        answers: list[Any] = [each.error for each in taken]
        for group in alike.values():
            found = self._ranked([requests[place] for place in group], [taken[place].session for place in group])
            for place, answer in zip(group, found, strict=True):
                answers[place] = answer
        return list(map(self._kept, requests, taken, answers))

    def _kept(self, request: Any, taken: _Taken, answer: Any) -> Any:
        """Keep a session as it has become, or leave it; return what its client gets."""
        name = request.session.id
        if taken.was_here and self._sessions.get(name) is None:  # left for one of a request before it
            return _not_here()
        if isinstance(answer, Recommendations) and taken.session is not None:
            self._sessions.put(name, taken.session)
        elif taken.was_here and taken.session is not None:
            self._sessions.drop(name)
        return answer

    def _ranked(self, requests: list[Any], sessions: list[Any]) -> list[Any]:
        """Rank for sessions whose requests differ in k and excluded items; each alone where that fails together."""
        k = max(request.k for request in requests)
        try:
            exclude = [request.exclude or None for request in requests]
            filters = self._recommender.filters(len(requests), requests[0].only, exclude if any(exclude) else None)
            at_most, limit = requests[0].at_most, None
            if at_most is not None and self._categories is not None:
                limit = CategoryLimit(at_most, self._categories)
            scores, items = rank_sessions(
                self._recommender, sessions, k, exclude_seen=requests[0].exclude_seen, filters=filters, limit=limit
            )
        except BaseException as error:
            if len(requests) == 1:
                return [as_failure(error)]
            return [self._ranked([request], [session])[0] for request, session in zip(requests, sessions, strict=True)]
        answers = []
        for row, (request, session) in enumerate(zip(requests, sessions, strict=True)):
            best = self._recommender.objects(*(_first(each, row, request.k) for each in (scores, items)))
            answers.append(Recommendations(best, SessionState(request.session.id, len(session))))
        return answers

    def _taken(self, request: Any) -> _Taken:
        """Begin the session of a request, or append to it."""
        asked, was_here = request.session, False
        try:
            self._recommender.filters(1, request.only)  # refused before anything is appended
            if asked.history is not msgspec.UNSET:
                return _Taken(self._recommender.session(asked.history, unknown=request.unknown), None, False)
            session = self._sessions.get(asked.id)
            was_here = session is not None
            if session is None:
                raise _not_here()
            self._check(session, asked)
            session.unknown = request.unknown
            session.extend(asked.append or ())
            return _Taken(session, None, True)
        except BaseException as error:
            return _Taken(None, as_failure(error), was_here)

    def _check(self, session: Session, asked: Any) -> None:
        """Refuse what does not go on with a session as it is."""
        if len(session) != asked.length:
            text = f"session.length must be {len(session)}, what the session holds; found {asked.length}"
            raise Refusal(409, f"{text}; send its history as session.history")
        length = len(session) + len(asked.append or ())
        if length > self._most:
            text = f"session.append: the session would have {length} items; at most {self._most} are accepted"
            raise Refusal(422, f"{text}; begin it anew with its latest as session.history")


class _Taken(NamedTuple):
    """What a request is for: a session with its new items, or why it is refused; and whether it was kept before."""

    session: Session | None
    error: Exception | None
    was_here: bool


def _not_here() -> Refusal:
    text = "the session is not here: it was never begun, or left for others"
    return Refusal(404, f"{text}; send its history as session.history")


def _of_different_sessions(requests: list[Any]) -> Iterator[range]:
    """Cut requests into consecutive parts in which no session occurs twice."""
    names: set[str] = set()
    first = 0
    for place, request in enumerate(requests):
        if request.session.id in names:
            yield range(first, place)
            first = place
            names.clear()
        names.add(request.session.id)
    if requests:
        yield range(first, len(requests))


def _first(ranked: np.ndarray, row: int, k: int) -> np.ndarray:
    return ranked[row : row + 1, :k]
