"""From a configuration to a finished run."""

from plr.errors import NonFiniteLossError, RunError
from plr.training.trainer import train

__all__ = ["NonFiniteLossError", "RunError", "train"]
