"""The OpenAPI 3.1 document, made from the routes and msgspec's types."""

from __future__ import annotations

from typing import Any

import msgspec

import plr
from plr.server.messages import Failure
from plr.server.routes import Route

__all__ = ["document"]

_REASONS = {
    400: "The body is not JSON.",
    401: "No token, or another one.",
    403: "The server has no token, and reloads for nobody.",
    404: "The session is not here: it was never begun, or left for others; begin it with its history.",
    408: "The body did not arrive in time.",
    409: "The session holds another number of items than was said; or the run was not loaded: the former is served.",
    413: "The body is larger than accepted.",
    415: "The body is not application/json, or it is encoded.",
    422: "The request cannot be answered: the message names the field, what was found and what is accepted.",
    429: "Too many users wait; the header Retry-After says when to try again.",
    500: "A mistake of the server's.",
    503: "The answer was not begun in time, or the server is being stopped.",
    504: "The answer was not ready in time.",
}


def document(routes: list[Route], needs_token: bool) -> dict[str, Any]:
    """Return the document for these routes."""
    kinds = [kind for route in routes for kind in (route.request, route.response) if kind is not None]
    schemas = msgspec.json.schema_components([*kinds, Failure], ref_template="#/components/schemas/{name}")
    names = dict(zip([*kinds, Failure], schemas[0], strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": {}}
        if route.request is not None:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": names[route.request]}},
            }
        answer: dict[str, Any] = {"description": "The answer."}
        if route.response is not None:
            answer["content"] = {"application/json": {"schema": names[route.response]}}
        else:
            answer["content"] = {route.media: {"schema": {"type": "object" if "json" in route.media else "string"}}}
        operation["responses"]["200"] = answer
        for status in route.statuses:
            if status == 401 and not needs_token:
                continue
            operation["responses"][str(status)] = {
                "description": _REASONS[status],
                "content": {"application/json": {"schema": names[Failure]}},
            }
            if status == 429:
                header = {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}}
                operation["responses"]["429"]["headers"] = {"Retry-After": header}
        if needs_token and 401 in route.statuses:
            operation["security"] = [{"token": []}]
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "plr serve", "version": plr.__version__, "description": "Recommendations of a trained run."},
        "paths": paths,
        "components": {"schemas": schemas[1]},
    }
    if needs_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return found
