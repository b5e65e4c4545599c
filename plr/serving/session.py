"""A user's history that grows: what was computed of it is kept, and an item that is appended is computed alone."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from plr.errors import RequestError, RunError, listed, shortened
from plr.serving.categories import CategoryLimit
from plr.serving.engine import Engine, KeptHistory, UserStates
from plr.serving.filters import ItemFilter
from plr.serving.item_numbers import is_sequence
from plr.serving.ragged import Ragged

if TYPE_CHECKING:
    from plr.serving.recommender import Recommendation, Recommender

__all__ = ["Session", "rank_sessions"]

_MAGIC = b"plr session\n"
_VERSION = 1
_HEADER = struct.Struct("<12sI32sQ")  # magic, version, the run's fingerprint, items
_DIGEST = 32


class Session:
    """A history to which items are appended, and recommendations for it.

        session = recommender.session(["item3", "item14"])
        session.append("item7")
        session.recommend(k=10)

    Answers are those of `Recommender.recommend` for the whole history, to the bit where the engine computes them. Up to
    max_length items of a causal model the engine keeps each layer's keys and values, and computes what was appended
    since the last answer alone. Beyond, every position moves with each new item, and the last max_length items are
    encoded anew for every answer, as are all histories where the model is not causal or PyTorch computes it. A session
    is for one thread at a time.

    Attributes:
        unknown: as given; what is appended later is taken by what it says then.

    Args:
        recommender: of the run.
        history: item ids as in the training file, oldest first; may be empty.
        unknown: "error" refuses an item that training never saw, here and in `append`; "skip" ignores it.

    Raises:
        RequestError: an unknown item.
        TypeError, ValueError: an argument of another kind.
    """

    def __init__(
        self,
        recommender: Recommender,
        history: Iterable[str | int] = (),
        *,
        unknown: Literal["error", "skip"] = "error",
    ) -> None:
        if unknown not in ("error", "skip"):
            raise ValueError(f'unknown must be "error" or "skip"; found {unknown!r}')
        self._recommender, self.unknown = recommender, unknown
        self._items: list[int] = []
        self._kept: KeptHistory | None = None
        self._states: UserStates | None = None  # of the history as far as it is kept
        self.extend(history)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def history(self) -> list[str]:
        """The ids of all items that the run knows, oldest first."""
        return [self._recommender.item_ids[item] for item in self._items]

    @property
    def bytes_kept(self) -> int:
        """How much memory the kept keys and values take."""
        return 0 if self._kept is None else self._kept.bytes

    def append(self, item: str | int) -> None:
        """Append an item, the newest.

        Raises:
            RequestError: training never saw it, and unknown items are refused.
            TypeError: it is no item id.
        """
        self.extend([item])

    def extend(self, items: Iterable[str | int]) -> None:
        """Append items, oldest first: all of them, or none where one is refused.

        Raises:
            As `append`.
        """
        if not is_sequence(items):
            raise TypeError(f"a session takes a sequence of item ids; found {shortened(items)}")
        numbers, unknown = self._recommender.numbers_of(items)
        if unknown and self.unknown == "error":
            raise RequestError(
                f"items never seen in training: {listed(dict.fromkeys(unknown))}; leave them out or skip them "
                '(unknown="skip")'
            )
        self._items.extend(numbers)

    def recommend(
        self,
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        only: Iterable[str | int] | None = None,
        exclude: Iterable[str | int] | None = None,
        where: Any = None,
        at_most: int | None = None,
        categories: Mapping[Any, Any] | str | Path | Ragged | None = None,
        category_field: str | None = None,
    ) -> list[Recommendation]:
        """Return the k best items for the history, best first: as `Recommender.recommend` does for one history.

        Raises:
            As there; RequestError: the history holds no item yet.
        """
        filters = self._recommender.filters(1, only, exclude, where)
        limit = CategoryLimit.of(self._recommender.item_ids, at_most, categories, category_field)
        scores, items = self.rank(k, exclude_seen=exclude_seen, filters=filters, limit=limit)
        return self._recommender.objects(scores, items)[0]

    def rank(
        self,
        k: int | None = None,
        *,
        exclude_seen: bool | None = None,
        filters: ItemFilter | None = None,
        limit: CategoryLimit | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [1, k] and items int64 [1, k], as `Recommender.rank` does for the one history."""
        if not self._items:
            raise RequestError("the session's history holds no item yet; append one")
        return rank_sessions(
            self._recommender, [self], k, exclude_seen=exclude_seen, filters=filters, limit=limit
        )

    def _is_kept(self, engine: Engine | None) -> bool:
        """Whether the engine can go on from what is kept, which is dropped where it cannot: it is of what was."""
        if engine is None or not engine.causal or len(self._items) > engine.max_length:
            self._kept = self._states = None
            return False
        return True

    def to_bytes(self) -> bytes:
        """Return the session for `Recommender.session_from_bytes`: the history, the run's fingerprint and a checksum.

        What was computed is left out: it takes hundreds of times the room, and is made again, to the same bits on the
        same kind of processor, with the first answer.
        """
        head = _HEADER.pack(_MAGIC, _VERSION, self._recommender.fingerprint, len(self._items))
        content = head + bytes([self.unknown == "skip"]) + np.array(self._items, "<i8").tobytes()
        return content + hashlib.sha256(content).digest()

    @classmethod
    def from_bytes(cls, recommender: Recommender, content: bytes) -> Session:
        """Return the session that `to_bytes` wrote.

        Raises:
            TypeError: it is no bytes.
            RunError: no session, a damaged one, one of another version or of another run.
        """
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise TypeError(f"a session is read from bytes; found {type(content).__name__}")
        content = bytes(content)
        if content[: len(_MAGIC)] != _MAGIC:
            raise RunError("these bytes are no session: they do not begin as `Session.to_bytes` writes them")
        if len(content) < _HEADER.size + 1 + _DIGEST:
            raise RunError(f"the session is damaged: it was cut off after {len(content)} bytes")
        _, version, fingerprint, count = _HEADER.unpack_from(content)
        if version != _VERSION:
            raise RunError(f"the session has format version {version}; this version of plr reads {_VERSION}")
        numbers = content[_HEADER.size + 1 : -_DIGEST]
        if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:] or len(numbers) != 8 * count:
            raise RunError("the session is damaged: its checksum is that of other bytes")
        if fingerprint != recommender.fingerprint:
            raise RunError("the session is of another run: items or weights differ; begin it anew with its history")
        session = cls(recommender, unknown="skip" if content[_HEADER.size] else "error")
        items = np.frombuffer(numbers, "<i8")
        if count and not 0 <= items.min() <= items.max() < len(recommender.item_ids):
            raise RunError("the session is damaged: it holds items that the run does not have")
        session._items = items.tolist()
        return session


def rank_sessions(
    recommender: Recommender,
    sessions: Sequence[Session],
    k: int | None = None,
    *,
    exclude_seen: bool | None = None,
    filters: ItemFilter | None = None,
    limit: CategoryLimit | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [B, k] and items int64 [B, k] for sessions of the recommender, as its `rank` does for histories.

    What is new of all of them is computed by one call of the engine.

    Raises:
        As `Recommender.rank`; RequestError: a history holds no item yet.
        ValueError: a session is another recommender's.
    """
    k = recommender.checked_k(k)
    for place, session in enumerate(sessions):
        if session._recommender is not recommender:
            raise ValueError(f"session {place} is another recommender's")
        if not session._items:
            which = "the session's history" if len(sessions) == 1 else f"session {place}: the history"
            raise RequestError(f"{which} holds no item yet; append one")
    histories = Ragged.of([session._items for session in sessions])
    states = _current_states(recommender.engine, sessions, histories)
    return recommender.rank(histories, k, exclude_seen=exclude_seen, filters=filters, limit=limit, states=states)


def _current_states(engine: Engine | None, sessions: Sequence[Session], histories: Ragged) -> UserStates | None:
    """Return what ranks the items for sessions now, of what is kept as far as that goes; None without the engine."""
    is_kept = np.array([session._is_kept(engine) for session in sessions], dtype=bool)  # each is asked
    if engine is None:
        return None
    _advance(engine, [session for session, kept in zip(sessions, is_kept.tolist(), strict=True) if kept])
    rest = histories.take(np.flatnonzero(~is_kept))
    parts = [session._states for session in sessions if session._states is not None]
    if len(rest) or not parts:
        parts.append(engine.states(torch.from_numpy(rest.ids), torch.from_numpy(rest.offsets)))
    if len(parts) == 1:
        return parts[0]
    log_weights = [part.log_weights for part in parts if part.log_weights is not None]
    states = UserStates(torch.cat([part.states for part in parts]), torch.cat(log_weights) if log_weights else None)
    return states.of_rows(np.argsort(np.argsort(~is_kept, kind="stable")))  # kept ones come first in it


def _advance(engine: Engine, sessions: Sequence[Session]) -> None:
    """Append to what is kept of sessions what is new of them."""
    behind = []
    for session in dict.fromkeys(sessions):
        if session._states is None or session._kept is None:  # nothing yet, or what was begun has failed
            session._kept = engine.kept_history()
        if session._kept.length < len(session._items):
            session._states = None
            behind.append((session, session._kept))
    if not behind:
        return
    new = Ragged.of([session._items[kept.length :] for session, kept in behind])
    ids, offsets = torch.from_numpy(new.ids), torch.from_numpy(new.offsets)
    states = engine.append([kept for _, kept in behind], ids, offsets)
    for row, (session, _) in enumerate(behind):
        own = states.of_rows(slice(row, row + 1))
        # Copies: a part would keep the memory of all.
        session._states = UserStates(own.states.clone(), None if own.log_weights is None else own.log_weights.clone())
