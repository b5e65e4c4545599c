"""The sessions of a worker: those asked for last, as many as may be."""

from __future__ import annotations

from collections import OrderedDict

from plr.serving import Session

__all__ = ["Sessions"]

_EACH, _ITEM = 1024, 64  # bytes of Python's objects: for a session, and for an item of its history


class Sessions:
    """Sessions by their ids; where they are more than may be, the one that was not asked for longest goes.

    Args:
        most: how many.
        most_bytes: memory of all together; the last one stays, whatever it takes.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._sessions: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, name: str) -> Session | None:
        """Return the session of that id, if it is here."""
        found = self._sessions.get(name)
        return None if found is None else found[0]

    def put(self, name: str, session: Session) -> None:
        """Keep a session, new or as it has become, as the one asked for last."""
        self.drop(name)
        size = session.bytes_kept + _ITEM * len(session) + _EACH
        self._sessions[name] = session, size
        self.bytes += size
        while len(self._sessions) > self._most or (self.bytes > self._most_bytes and len(self._sessions) > 1):
            self.drop(next(iter(self._sessions)))

    def clear(self) -> None:
        """Forget all sessions."""
        self._sessions.clear()
        self.bytes = 0

    def drop(self, name: str) -> None:
        """Forget a session, if it is here."""
        if (found := self._sessions.pop(name, None)) is not None:
            self.bytes -= found[1]
