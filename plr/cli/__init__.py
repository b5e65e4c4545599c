"""Everything that a terminal sees: commands, their parser, progress and tables."""

from plr.cli.program import main

__all__ = ["main"]
