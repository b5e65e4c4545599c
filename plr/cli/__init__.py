"""Everything that a terminal sees: commands, their parser, progress and tables."""

from plr.cli.commands import main

__all__ = ["main"]
