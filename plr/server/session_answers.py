"""Answers to requests of sessions, several at once: what is new of all of them is one call of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

        As one request after the other: one for a session that another one before it is for sees what that one left.
        Where a request is refused its session stays as it was; where ranking fails the session is left, as it has the
        new items already and its client was not told so.
        """
        answers: list[Any] = [None] * len(requests)
        for part in _of_different_sessions(requests):
            self._answer([requests[place] for place in part], part, answers)
        self._counters.sessions(len(self._sessions), self._sessions.bytes)
        return answers

    def _answer(self, requests: list[Any], places: range, answers: list[Any]) -> None:
        alike: dict[Any, list[tuple[int, Any, Session]]] = {}
        for place, request in zip(places, requests, strict=True):
            try:
                self._recommender.filters(1, request.only)  # refused before anything is appended
                session = self._begun_or_known(request)
            except BaseException as error:
                answers[place] = as_failure(error)
                continue
            # A list of allowed items is read for its request alone.
            option = request.exclude_seen, request.at_most, place if request.only is not None else None
            alike.setdefault(option, []).append((place, request, session))
        for group in alike.values():
            self._rank(group, answers)

    def _rank(self, group: list[tuple[int, Any, Session]], answers: list[Any]) -> None:
        """Rank for sessions whose requests differ in k and excluded items; each alone where that fails together."""
        requests = [request for _, request, _ in group]
        k = max(request.k for request in requests)
        try:
            exclude = [request.exclude or None for request in requests]
            filters = self._recommender.filters(len(group), requests[0].only, exclude if any(exclude) else None)
            at_most, limit = requests[0].at_most, None
            if at_most is not None and self._categories is not None:
                limit = CategoryLimit(at_most, self._categories)
            scores, items = rank_sessions(
                self._recommender,
                [session for _, _, session in group],
                k,
                exclude_seen=requests[0].exclude_seen,
                filters=filters,
                limit=limit,
            )
        except BaseException as error:
            if len(group) > 1:
                for each in group:
                    self._rank([each], answers)
                return
            place, request, _ = group[0]
            if request.session.history is msgspec.UNSET:
                self._sessions.drop(request.session.id)
            answers[place] = as_failure(error)
            return
        for row, (place, request, session) in enumerate(group):
            self._sessions.put(request.session.id, session)
            best = self._recommender.objects(*(_first(each, row, request.k) for each in (scores, items)))
            answers[place] = Recommendations(best, SessionState(request.session.id, len(session)))

    def _begun_or_known(self, request: Any) -> Session:
        asked = request.session
        if asked.history is not msgspec.UNSET:
            return self._recommender.session(asked.history, unknown=request.unknown)
        session = self._known(asked)
        session.unknown = request.unknown
        session.extend(asked.append or ())
        return session

    def _known(self, asked: Any) -> Session:
        session = self._sessions.get(asked.id)
        if session is None:
            text = "the session is not here: it was never begun, or left for others"
            raise Refusal(404, f"{text}; send its history as session.history")
        if len(session) != asked.length:
            text = f"session.length must be {len(session)}, what the session holds; found {asked.length}"
            raise Refusal(409, f"{text}; send its history as session.history")
        length = len(session) + len(asked.append or ())
        if length > self._most:
            text = f"session.append: the session would have {length} items; at most {self._most} are accepted"
            raise Refusal(422, f"{text}; begin it anew with its latest as session.history")
        return session


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
