"""What a reproduction was asked for. Imports no PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import yaml

from plr.config import Config
from plr.errors import ConfigError
from plr.options import RawDataOptions, types_of
from plr.reproduce import EXPERIMENTS
from plr.reproduce.presets import BACKBONES, METHODS, ON_ASKING, PRESETS, Preset

__all__ = ["Request", "as_number", "kinds_of", "refuse_several", "settings_of"]

_FIXED = frozenset(("data", "out", "backbone", "method", "mixture", "seed", "threads", "progress", "provenance",
                    "cache", "phase", "init", "from_run", "new_items"))  # fmt: skip
# What decides the rows, and the items that each is ranked among: of one system alone it could not be compared.
_OF_ALL = frozenset((*(each.name for each in fields(RawDataOptions)), "exclude_seen"))


@dataclass(frozen=True)
class Request:
    """What a reproduction was asked for.

    Args:
        what: table1 … table4, figure2 … figure5, theory, or all.
        data: as in `plr train`; Table 4 alone needs none.
        out: folder for the runs and the report.
        preset: sizes, budgets and grids.
        seeds: how many runs of each system, seeds 0, 1, …; None: the preset's.
        settings: [SYSTEM:]FIELD=VALUE, fields of `plr train` for all runs, or for those of a backbone or method.
        backbones, methods: of Table 2 and Figures 3 and 4; empty: the preset's, without the methods of ON_ASKING.
        sample: about so many interactions, of users drawn at random; 0: all; None: the preset's.
        processes: how many runs are trained at a time.

    Raises:
        ConfigError: names the argument, what was found and what is accepted.
    """

    what: tuple[str, ...]
    data: str = ""
    out: str = ""
    preset: str = "quick"
    seeds: int | None = None
    settings: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sample: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.what:
            raise ConfigError(f"name what to reproduce: {', '.join(EXPERIMENTS)} or all")
        for name, given, known in (
            ("what", self.what, (*EXPERIMENTS, "all")),
            ("preset", (self.preset,), tuple(PRESETS)),
            ("backbones", self.backbones, BACKBONES),
            ("methods", self.methods, (*METHODS, *ON_ASKING)),
        ):
            for each in given:
                if each not in known:
                    raise ConfigError(f"{name} must be of {', '.join(known)}; found {each!r}")
                if name != "what" and given.count(each) > 1:
                    raise ConfigError(f"{name} must be different ones; found {each!r} twice")
        if not self.out:
            raise ConfigError("--out is missing: name the folder for the runs and the report")
        for name, value, least in (
            ("seeds", self.seeds, 1),
            ("sample", self.sample, 0),
            ("processes", self.processes, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; found {value}")
        settings_of(self.settings, ())
        if "unisrec" in self.backbones and "text_vectors" not in settings_of(self.settings, ("unisrec", "base")):
            raise ConfigError(
                "backbones: unisrec reads text vectors of the items, and none are named; make them by plr embed-text "
                "and add --set unisrec:text_vectors=FOLDER"
            )
        if self.processes == 1:
            every = settings_of(self.settings, (*BACKBONES, *METHODS, *ON_ASKING))
            refuse_several(every, "give --processes 2 or more, which trains each run by a command of its own")

    @property
    def names(self) -> list[str]:
        """The tables and figures that are asked for, in the paper's order."""
        return [name for name in EXPERIMENTS if name in self.what or "all" in self.what]

    @property
    def sizes(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]


def refuse_several(settings: Mapping[str, Any], remedy: str) -> None:
    """Refuse runs of several processes where this one trains them: each of the others would begin this command anew.

    Raises:
        ConfigError: they would have several; says what to do.
    """
    for name in ("devices", "nodes"):
        if settings.get(name, 1) != 1:
            raise ConfigError(f"--set {name}={settings[name]}: its other processes would repeat this command; {remedy}")


def settings_of(
    assignments: Iterable[str],
    systems: Iterable[str],
    *,
    known: Collection[str] | None = (*BACKBONES, *METHODS, *ON_ASKING),
) -> dict[str, Any]:
    """Return what `[SYSTEM:]FIELD=VALUE` assignments set for one of the systems; values are YAML, later ones win.

    Args:
        assignments: of all systems.
        systems: the names that this one goes by.
        known: the names that SYSTEM may be; None: any.

    Raises:
        ConfigError: an assignment that is none, of a system or a field that does not exist or that is set elsewhere; or
            for one system, of what all have to share.
    """
    options = {each.name for each in fields(Config)}
    systems, chosen = set(systems), {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set takes FIELD=VALUE or SYSTEM:FIELD=VALUE; found {assignment!r}")
        system, colon, name = name.rpartition(":")
        if colon and known is not None and system not in known:
            raise ConfigError(f"--set {assignment}: SYSTEM is one of {', '.join(known)}; found {system!r}")
        if name in _FIXED:
            raise ConfigError(f"--set {assignment}: {name} is set by the command itself")
        if name not in options:
            (nearest,) = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
            raise ConfigError(f"--set {assignment}: unknown field {name!r}, the nearest known is {nearest!r}")
        if colon and name in _OF_ALL:
            raise ConfigError(
                f"--set {assignment}: all systems have the same rows and candidates, so {name} is set for all: "
                f"--set {name}={value}"
            )
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: not a YAML value: {error}") from error
        if not colon or system in systems:
            chosen[name] = as_number(parsed, kinds_of(name))
    return chosen


def kinds_of(name: str) -> tuple[type, ...]:
    """Return the types of an option's values."""
    hint = types_of(Config)[name]
    return get_args(hint) if type(None) in get_args(hint) else (hint,)


def as_number(value: Any, kinds: tuple[type, ...]) -> Any:
    """Return a value of YAML; 1e-4, which YAML takes for a text, as the number that it is where one may stand."""
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if float in kinds and isinstance(value, int) and not isinstance(value, bool) else value
