"""What a search was asked for. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plr.errors import ConfigError
from plr.reproduce.request import refuse_several, settings_of
from plr.tune.systems import GROUPS, System, system_of

__all__ = ["PRUNERS", "Request"]

PRUNERS = {
    "none": "every trial is trained to its end",
    "median": "a trial whose best validation so far is below the median of the complete trials' at the same epoch ends",
}


@dataclass(frozen=True)
class Request:
    """What a search was asked for.

    Args:
        data: as in `plr train`.
        out: folder for the trials, the final runs and the tables; the command, repeated, goes on there.
        systems: what is tuned, each as BACKBONE-METHOD, such as sasrec-plr; the first is what the others are compared
            with.
        space: YAML file of what is searched; None: the one that comes with plr.
        trials: of each system, the first with its default settings.
        seeds: final runs of each system's chosen settings, seeds 0, 1, …; only these are tested.
        settings: [SYSTEM:]FIELD=VALUE, fields of `plr train` for all trials and runs, or for those of a backbone, a
            method or a system.
        pruner: what ends trials before their time.
        seed: of the search; trials are trained with seed 0.
        processes: how many trials of different systems, and how many final runs, are trained at a time, each by a
            process of its own; what is found does not depend on it.

    Raises:
        ConfigError: names the argument, what was found and what is accepted.
    """

    data: str = ""
    out: str = ""
    systems: tuple[str, ...] = ("sasrec-base", "sasrec-plr")
    space: str | None = None
    trials: int = 20
    seeds: int = 3
    settings: tuple[str, ...] = ()
    pruner: str = "none"
    seed: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            if not getattr(self, name):
                what = "a file of interactions or a prepared folder" if name == "data" else "the folder of the search"
                raise ConfigError(f"--{name} is missing: name {what}")
        if not self.systems:
            raise ConfigError("systems must be one at least")
        for name in self.systems:
            system_of(name)
            if self.systems.count(name) > 1:
                raise ConfigError(f"systems must be different ones; found {name!r} twice")
        for name, least in (("trials", 1), ("seeds", 0), ("seed", 0), ("processes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; found {getattr(self, name)}")
        if self.pruner not in PRUNERS:
            raise ConfigError(f"pruner must be one of {', '.join(PRUNERS)}; found {self.pruner!r}")
        for system in self.tuned:
            refuse_several(self.set_for(system), "plr tune trains with one process: leave it out")
        groups = {group for system in self.tuned for group in system.groups}
        for assignment in self.settings:
            group, colon, _ = assignment.partition("=")[0].rpartition(":")
            if colon and group not in groups:
                raise ConfigError(f"--set {assignment}: of {', '.join(self.systems)} none is of {group}")

    @property
    def tuned(self) -> list[System]:
        """The systems."""
        return [system_of(name) for name in self.systems]

    def set_for(self, system: System) -> dict[str, Any]:
        """Return what --set says for a system."""
        return settings_of(self.settings, system.groups, known=GROUPS)
