"""`plr train --from RUN`: the options of the run that is gone on from, as the defaults of the one that goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plr.config import read_fields
from plr.errors import ConfigError
from plr.inherited import options_of_parent

__all__ = ["inherited_options"]


def inherited_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fields that `plr train` takes over from the run that --from names; none where it names none.

    Args:
        arguments: of `plr train`.

    Raises:
        FileNotFoundError, ConfigError: as `options_of_parent`.
    """
    files = [_fields(name) for name in _given(arguments, "--config")]
    if any(values.get("provenance") is not None for values in files):  # a run's own configuration says all of it
        return {}
    named = {"from_run": "", "data": "", "out": ""}
    typed = {name: _last(arguments, f"--{name}") for name in ("data", "out")}
    typed["from_run"] = _last(arguments, "--from", "--from_run")
    for values in (*files, typed):
        named |= {name: os.path.expanduser(str(values[name])) for name in named if values.get(name)}
    if not named["from_run"]:
        return {}
    return options_of_parent(named["from_run"], named["data"], named["out"])


def _fields(name: str) -> dict[str, Any]:
    try:
        return read_fields(Path(os.path.expanduser(name)))
    except (ConfigError, OSError):  # said by the parser, which reads the file itself
        return {}


def _given(arguments: Sequence[str], *options: str) -> list[str]:
    """Return the values that are given to an option, in their order."""
    values = []
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in options:
            values.append(value if equals else "".join(arguments[place + 1 : place + 2]))
    return values


def _last(arguments: Sequence[str], *options: str) -> str | None:
    return next(iter(reversed(_given(arguments, *options))), None)
