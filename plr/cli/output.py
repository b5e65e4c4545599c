"""What commands print."""

from __future__ import annotations

import sys


def show_parts(*parts: object) -> None:
    """Print texts, and tables of Rich."""
    from rich.console import Console

    from plr.cli.tables import print_line

    console = Console()
    for part in parts:
        if isinstance(part, str):
            print_line(console, part)
        else:
            console.print(part)


def note(text: str) -> None:
    """Say on stderr what is no answer."""
    print(f"plr: {text}", file=sys.stderr)
