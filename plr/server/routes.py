"""What there is to ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Route"]


@dataclass(frozen=True)
class Route:
    """One path with its method.

    Args:
        method: GET or POST; HEAD is answered as GET.
        path: as it stands in the URL.
        summary: for the OpenAPI document.
        answer: takes the decoded body, None where there is none, and who waits for the answer, until when;
            returns what is encoded as the answer, or its bytes.
        request: the type of the body; None: there is none.
        response: the type of the answer; None: bytes of kind `media`.
        media: the answer's kind.
        statuses: those beside 200 that it may have. 401 among them: a token is needed where the server has one.
    """

    method: str
    path: str
    summary: str
    answer: Callable[[Any, Any], Awaitable[Any]]
    request: Any = None
    response: Any = None
    media: str = "application/json"
    statuses: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The path as an identifier."""
        return self.path.strip("/").partition(".")[0]
