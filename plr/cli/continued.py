"""`plr train --from RUN`: the options of the run that is gone on from, as the defaults of the one that goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plr.config import OF_THE_DATA, Config, read_fields, without_derived
from plr.errors import ConfigError, RunError
from plr.options import RawDataOptions
from plr.prepare.folder import is_prepared

__all__ = ["options_of_parent"]

_OF_THE_RUN = frozenset(("data", "out", "init", "from_run", "new_items", "provenance"))


def options_of_parent(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fields that `plr train` takes over from the run that --from names; none where it names none.

    Those that say of one run alone what it is are left out, and the times at which its data were cut. So are, for a
    prepared folder, the options of raw data. Where the parent is gone they are those of the unfinished run that began
    at it.

    Args:
        arguments: of `plr train`.

    Raises:
        FileNotFoundError: there is no finished run, nor an unfinished one that began at it.
        ConfigError: a file of fields, or the parent's, cannot be read.
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
    config = _parent(named["from_run"], named["out"])
    left_out = _OF_THE_RUN.union(OF_THE_DATA)
    if any(map(is_prepared, (Path(named["data"]), Path(os.environ.get("PLR_DATA", "")) / named["data"]))):
        left_out |= set(RawDataOptions.__dataclass_fields__)
    values = without_derived(asdict(config))
    return {name: value for name, value in values.items() if name not in left_out}


def _parent(run: str, out: str) -> Config:
    folder = Path(run)
    if (folder / "metrics.json").exists():
        return Config.load(folder / "config.yaml")
    begun = Path(out) / "config.yaml"
    if out and begun.exists():
        config = Config.load(begun)
        if config.from_run == run:
            return config
    if (folder / "config.yaml").exists():
        raise RunError(
            f"--from {run}: the run is not finished; repeat its `plr train --config {folder / 'config.yaml'}` to "
            "resume it"
        )
    raise FileNotFoundError(f"--from {run}: no run here (config.yaml is missing); make one with `plr train --out`")


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
