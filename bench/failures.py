"""A peer or a probe that cannot run here is named with its reason and left out; it takes no other along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def failure(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200].rstrip('.')}"


@contextmanager
def noted(failed: dict[str, str], name: str, *, needed: bool = False) -> Iterator[None]:
    """Note under `name` the error that the body raises; one that is needed, ours, raises it."""
    try:
        yield
    except Exception as error:
        if needed:
            raise
        failed[name] = failure(error)
