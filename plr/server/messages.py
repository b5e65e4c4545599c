"""What clients send and get, as msgspec's types: one place for decoding, checks and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from plr.errors import shortened
from plr.server.options import ServerOptions
from plr.serving import Recommendation

__all__ = [
    "Failure", "Health", "Limits", "Message", "Ready", "Recommendations", "Refusal", "Requests", "SessionState",
    "SimilarItems",
]  # fmt: skip


class Refusal(Exception):
    """A request that gets another status than 200, with a message for the client."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class SessionState(Struct):
    """A session as it is now: how many items it holds, which its next request says."""

    id: str
    length: int


class Recommendations(Struct):
    """For each history, or the session's, its items, best first; fewer than k where filters leave fewer."""

    recommendations: list[list[Recommendation]]
    session: SessionState | UnsetType = UNSET


class SimilarItems(Struct):
    """For each item the nearest others, the nearest first; scores are cosines."""

    similar: list[list[Recommendation]]


class Health(Struct):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(Struct):
    """What is served."""

    status: Literal["ready"]
    run: str
    backbone: str
    method: str
    items: int
    max_length: int


class Message(Struct):
    """What was done."""

    message: str


class Failure(Struct):
    """Why there is no answer: the field, what was found, what is accepted."""

    error: str


class Limits(NamedTuple):
    """The most of everything in a request."""

    histories: int
    history: int
    ids: int
    k: int
    similar_k: int

    @classmethod
    def of(cls, options: ServerOptions, items: int) -> Limits:
        """Return those of a server with these options and a run with this number of items."""
        ks = min(options.max_k, items), min(options.max_k, items - 1)
        return cls(options.max_histories, options.max_history, options.max_ids, *ks)


_LONGEST_ID = 128


def _array(of: Any, least: int, most: int, description: str) -> Any:
    """A list type whose schema has its limits; decoding leaves them to `check`, which says what was found."""
    return Annotated[list[of], Meta(extra_json_schema={"minItems": least, "maxItems": most}, description=description)]


class Requests:
    """Decodes and checks the bodies of a server with these limits.

    Attributes:
        recommend, similar: the types of the bodies.
        session: that of a session in the former.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        item = str | int
        ids = _array(item, 0, limits.ids, "Item ids; those that training never saw are ignored.")
        history = _array(item, 1, limits.history, "Item ids as in the training file, oldest first.")
        histories = _array(history, 1, limits.histories, "One history for each user.")
        part = _array(item, 0, limits.history, "Item ids to append, oldest first.")
        name = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": _LONGEST_ID})]
        length = Annotated[int, Meta(extra_json_schema={"minimum": 0}, description="As the last answer said.")]
        self.session: Any = msgspec.defstruct(
            "SessionRequest",
            [
                ("id", name),
                ("history", history | UnsetType, UNSET),
                ("length", length | UnsetType, UNSET),
                ("append", part | UnsetType, UNSET),
            ],
            namespace={"__doc__": "Begins a session (history), or goes on with it (length, append)."},
            forbid_unknown_fields=True,
        )
        self.recommend: Any = msgspec.defstruct(
            "RecommendRequest",
            [
                ("histories", histories | UnsetType, UNSET),
                ("k", _k(limits.k), min(10, limits.k)),
                ("exclude", ids | None, None),
                ("only", ids | None, None),
                ("exclude_seen", bool | None, None),
                ("unknown", Literal["error", "skip"], "error"),
                ("at_most", _at_most(limits.k) | None, None),
                ("session", self.session | UnsetType, UNSET),
            ],
            namespace={"__doc__": "Which histories, or which session, get recommendations, how many, of which items."},
            forbid_unknown_fields=True,
        )
        self.similar: Any = msgspec.defstruct(
            "SimilarRequest",
            [
                ("items", _array(item, 1, limits.histories, "Item ids as in the training file.")),
                ("k", _k(limits.similar_k), min(10, limits.similar_k)),
            ],
            namespace={"__doc__": "Which items' nearest others are wanted, and how many."},
            forbid_unknown_fields=True,
        )
        self._decoders = {kind: msgspec.json.Decoder(kind) for kind in (self.recommend, self.similar)}

    def decode(self, kind: type, body: bytes) -> Any:
        """Return the body as an object of `kind`: `recommend` or `similar`.

        Raises:
            Refusal: status 400 where it is no JSON, 422 where it is not of that kind or beyond the limits.
        """
        try:
            request = self._decoders[kind].decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(422, _in_words(str(error), kind)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"the body must be JSON in UTF-8: {error}") from None
        self._check(request)
        return request

    def _check(self, request: Any) -> None:
        limits = self.limits
        if isinstance(request, self.similar):
            _check_length("items", request.items, 1, limits.histories, "items")
            _check_k(request.k, limits.similar_k)
            return
        if (request.histories is UNSET) == (request.session is UNSET):
            found = "neither" if request.session is UNSET else "both"
            raise Refusal(422, f"the body must have histories or session, one of the two; found {found}")
        if request.histories is not UNSET:
            _check_length("histories", request.histories, 1, limits.histories, "histories")
            for place, history in enumerate(request.histories):
                if not 1 <= len(history) <= limits.history:
                    _check_length(f"histories[{place}]", history, 1, limits.history, "items")
        else:
            self._check_session(request.session)
        for name in ("exclude", "only"):
            if (ids := getattr(request, name)) is not None:
                _check_length(name, ids, 0, limits.ids, "ids")
        if request.at_most is not None and not 1 <= request.at_most <= limits.k:
            raise Refusal(422, f"at_most must be from 1 to {limits.k}; found {shortened(request.at_most)}")
        _check_k(request.k, limits.k)

    def _check_session(self, session: Any) -> None:
        if not 1 <= len(session.id) <= _LONGEST_ID:
            raise Refusal(422, f"session.id must have 1 to {_LONGEST_ID} characters; found {len(session.id)}")
        if (session.history is UNSET) == (session.length is UNSET):
            found = "neither" if session.history is UNSET else "both"
            text = "session must have history, to begin it, or length, to go on with it"
            raise Refusal(422, f"{text}; found {found}")
        if session.history is not UNSET:
            _check_length("session.history", session.history, 1, self.limits.history, "items")
            if session.append is not UNSET:
                raise Refusal(422, "session.append goes with session.length; a history holds all items")
        elif session.length < 0:
            raise Refusal(422, f"session.length must be at least 0; found {shortened(session.length)}")
        elif session.append is not UNSET:
            _check_length("session.append", session.append, 0, self.limits.history, "items")


def _k(most: int) -> Any:
    return Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": most}, description="How many items.")]


def _at_most(most: int) -> Any:
    text = "How many items of a category an answer may hold; where the server knows the items' categories."
    return Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": most}, description=text)]


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise Refusal(422, f"k must be from 1 to {most}; found {shortened(k)}")


def _check_length(name: str, values: Sequence[Any], least: int, most: int, of: str) -> None:
    if not least <= len(values) <= most:
        raise Refusal(422, f"{name} must have {least} to {most} {of}; found {len(values)}")


_EXPECTED = re.compile(r"Expected `(.*)`, got `(.*)`")
_WORDS = {"str": "a text", "int": "a whole number", "bool": "true or false", "array": "an array",
          "object": "an object", "null": "null", "float": "a number"}  # fmt: skip


def _in_words(message: str, kind: type) -> str:
    """Turn msgspec's message about a body into one that begins with the field."""
    text, _, place = message.partition(" - at `$")
    field = place.rstrip("`").lstrip(".") or "the body"
    if match := _EXPECTED.fullmatch(text):
        expected, found = (
            " or ".join(_WORDS.get(word, word) for word in sorted(group.split(" | "))) for group in match.groups()
        )
        return f"{field} must be {expected}; found {found}"
    fields = ", ".join(field.name for field in msgspec.structs.fields(kind))
    if text.startswith("Object contains unknown field"):
        return f"{field} has {text.removeprefix('Object contains ')}; accepted are {fields}"
    if text.startswith("Invalid enum value"):
        return f"{field}: found {text.removeprefix('Invalid enum value ')}; accepted are 'error', 'skip'"
    return f"{field}: {text[:1].lower()}{text[1:]}; accepted are {fields}"
