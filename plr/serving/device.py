"""The device that a model is asked to compute on."""

from __future__ import annotations

import torch

from plr.errors import ConfigError

__all__ = ["usable_device"]


def usable_device(name: str | torch.device) -> torch.device:
    """Return a device that can be used.

    Raises:
        ConfigError: there is none of that name here, or it computes nothing.
    """
    try:
        found = torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0].partition(". ")[0]  # then it goes on and on
        raise ConfigError(f"--device {name} cannot be used: {reason}") from error
    if found.is_meta:
        raise ConfigError(f"--device {name} cannot be used: it computes nothing")
    return torch.device(name)
