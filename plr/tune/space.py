"""What a search varies: a YAML file of options, each with choices or a range. Imports no PyTorch.

    lr: {low: 0.0003, high: 0.01, log: true}      a range; evenly in its logarithm
    hidden_dropout: {low: 0.1, high: 0.6}         with `step`, in steps of so much
    dim: [64, 128, 256]                           choices
    epochs: 30                                    one value: fixed
    plr:                                          of the systems of a backbone, a method, or one BACKBONE-METHOD
      streams: [2, 4, 8]
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from numbers import Real
from pathlib import Path
from random import Random
from typing import Any

from plr.config import Config, read_fields
from plr.errors import ConfigError, shortened
from plr.options import (
    ClozeOptions,
    EncoderOptions,
    ERLOptions,
    LARESPostTrainingOptions,
    PLROptions,
    PRLOptions,
    TrainingOptions,
    UniSRecOptions,
)
from plr.reproduce.request import as_number, kinds_of
from plr.tune.systems import GROUPS, System

__all__ = ["DEFAULT_SPACE", "Choices", "Range", "Space", "Spec"]

DEFAULT_SPACE = Path(__file__).parent / "space.yaml"
_KINDS = (
    TrainingOptions, EncoderOptions, UniSRecOptions, ClozeOptions, PLROptions, ERLOptions, PRLOptions,
    LARESPostTrainingOptions,
)  # fmt: skip
# Of seeds the best is no setting, and a refit has no validation rows.
_SEARCHED = {each.name for kind in _KINDS for each in fields(kind)} - {"seed", "refit"}
_ACCEPTED = "a list of choices, {low: A, high: B}, with `log: true` or `step: S`, or one value, which fixes it"


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return any(value == each and type(value) is type(each) for each in self.values)

    def edges(self) -> tuple[Any, ...]:
        """Return the values that have to be accepted for all to be."""
        return self.values

    def drawn(self, random: Random) -> Any:
        """Return one of the values."""
        return random.choice(self.values)

    def plain(self) -> Any:
        """Return what YAML says."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the value is one that may be drawn."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def edges(self) -> tuple[Any, ...]:
        """Return the values that have to be accepted for all to be."""
        return self.low, self.high

    def drawn(self, random: Random) -> Any:
        """Return one of the values, whatever their distribution in a search."""
        if self.whole:
            return random.randrange(int(self.low), int(self.high) + 1, int(self.step or 1))
        return random.uniform(self.low, self.high)

    def plain(self) -> Any:
        """Return what YAML says."""
        extra: dict[str, Any] = {"log": True} if self.log else {}
        return {"low": self.low, "high": self.high} | extra | ({} if self.step is None else {"step": self.step})


Spec = Choices | Range
_Entries = dict[str, Any]  # an option's Spec, or the value that it is fixed at


class Space:
    """What a file says is searched.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be read, or an entry is none; names the file and the entry.
    """

    def __init__(self, path: Path = DEFAULT_SPACE):
        self.path = path
        read = read_fields(path)
        self._general = self._entries({name: value for name, value in read.items() if name not in GROUPS}, "")
        self._own: dict[str, _Entries] = {}
        for group in (name for name in read if name in GROUPS):
            if not isinstance(read[group], dict):
                raise ConfigError(f"{path}: {group}: expected lines of 'option: …' below it; found {read[group]!r}")
            self._own[group] = self._entries(read[group], f"{group}: ")

    def of(self, systems: Mapping[System, Collection[str]]) -> dict[System, tuple[dict[str, Spec], dict[str, Any]]]:
        """Return for each system what is searched and what is fixed, by option.

        An entry of the system takes the place of one of its method, that of one of its backbone, and this of one for
        all. Entries are those of the systems that have the option.

        Args:
            systems: with the options that they do not have.

        Raises:
            ConfigError: an entry is of an option that none of the systems that it names has.
        """
        for group, own in self._own.items():
            named = [system for system in systems if group in system.groups]
            for name in own:
                if named and all(name in systems[system] for system in named):
                    raise ConfigError(f"{self.path}: {group}: {name} decides nothing in {named[0].name}")
        found = {}
        for system, without in systems.items():
            entries: _Entries = {}
            for own in (self._general, *(self._own.get(group, {}) for group in system.groups)):
                entries |= {name: entry for name, entry in own.items() if name not in without}
            searched = {name: entry for name, entry in entries.items() if isinstance(entry, Choices | Range)}
            found[system] = searched, {name: entry for name, entry in entries.items() if name not in searched}
        return found

    def _entries(self, read: dict[str, Any], place: str) -> _Entries:
        return {name: self._entry(name, value, f"{self.path}: {place}{name}") for name, value in read.items()}

    def _entry(self, name: str, value: Any, place: str) -> Any:
        if name not in _SEARCHED:
            known = {each.name for each in fields(Config)}
            if name in known:
                raise ConfigError(f"{place}: not an option that can be searched; --set fixes options of all runs")
            (nearest,) = difflib.get_close_matches(str(name), (*_SEARCHED, *GROUPS), n=1, cutoff=0.0)
            raise ConfigError(f"{place}: neither an option nor a system, the nearest known is {nearest!r}")
        kinds = kinds_of(name)
        if isinstance(value, dict):
            return _range(value, place, kinds)
        if not isinstance(value, list):
            return as_number(value, kinds)
        choices = tuple(as_number(each, kinds) for each in value)
        if not choices or any(isinstance(each, list | dict) for each in choices):
            raise ConfigError(f"{place}: choices must be single values, one at least; found {shortened(value)}")
        if len(set(map(repr, choices))) < len(choices):
            raise ConfigError(f"{place}: choices must be different ones; found {value!r}")
        return Choices(choices)


def _range(value: dict[str, Any], place: str, kinds: tuple[type, ...]) -> Range:
    if not {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        raise ConfigError(f"{place}: expected {_ACCEPTED}; found {value!r}")
    whole = int in kinds
    if not whole and float not in kinds:
        raise ConfigError(f"{place}: not a number, hence a list of choices; found {value!r}")
    log, step = value.get("log", False), as_number(value.get("step"), kinds)
    low, high = (as_number(value[name], kinds) for name in ("low", "high"))
    for name, each in (("low", low), ("high", high), *([("step", step)] if "step" in value else [])):
        right = isinstance(each, int if whole else Real) and not isinstance(each, bool) and math.isfinite(each)
        if not right:
            raise ConfigError(f"{place}: {name} must be a {'whole' if whole else 'finite'} number; found {each!r}")
    if not isinstance(log, bool):
        raise ConfigError(f"{place}: log must be true or false; found {log!r}")
    if not low < high or (log and low <= 0) or (step is not None and not 0 < step <= high - low):
        raise ConfigError(
            f"{place}: low must be below high, with log above 0, and step above 0 and at most their difference; "
            f"found {value!r}"
        )
    if log and step is not None:
        raise ConfigError(f"{place}: log and step exclude each other; found {value!r}")
    if step is not None:  # the last value that the steps reach
        first, last, by = (Fraction(str(each)) for each in (low, high, step))  # as written: binary numbers miss the end
        high = type(high)(last - (last - first) % by)
    low, high = (low, high) if whole else (float(low), float(high))
    return Range(low, high, log, step if whole or step is None else float(step), whole)
