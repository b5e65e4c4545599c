"""The systems that are tuned, by the names that their runs have in a reproduction. Imports no PyTorch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from plr.errors import ConfigError
from plr.reproduce.presets import METHODS
from plr.systems import BACKBONES, REFUSALS

__all__ = ["GROUPS", "SYSTEMS", "System", "system_of"]


@dataclass(frozen=True)
class System:
    """A backbone with a method of `plr reproduce`: plr-states is the paper's form."""

    backbone: str
    method: str

    @property
    def name(self) -> str:
        """BACKBONE-METHOD."""
        return f"{self.backbone}-{self.method}"

    @property
    def groups(self) -> tuple[str, str, str]:
        """What names it in a search space and in --set, the more special name later."""
        return self.backbone, self.method, self.name

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the system."""
        return {"backbone": self.backbone, **METHODS[self.method]}


SYSTEMS = {
    system.name: system
    for system in (System(backbone, method) for backbone in BACKBONES for method in METHODS)
    if (system.backbone, METHODS[system.method]["method"]) not in REFUSALS
}
GROUPS = (*BACKBONES, *METHODS, *SYSTEMS)


def system_of(name: str) -> System:
    """Return the system of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SYSTEMS:
        (nearest,) = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.0)
        raise ConfigError(
            f"systems must be BACKBONE-METHOD, of backbones {', '.join(BACKBONES)} and methods {', '.join(METHODS)}; "
            f"found {name!r}, the nearest known is {nearest!r}"
        )
    return SYSTEMS[name]
