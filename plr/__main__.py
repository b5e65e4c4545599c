"""`plr`, and `python -m plr`: the command line, begun without looking for garbage among modules."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    # What modules are made of stays: to look through it again and again is a good part of the time of a short command.
    collecting = gc.isenabled()
    gc.disable()
    try:
        from plr.cli import main as run

        gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
