"""How much memory the C++ backend may take to make gradients along with a loss: three products instead of four.

The scores of some rows with all items are kept until the rows' losses are known (csrc/score_chunks.h). More rows at
once read the items and their gradient less often; beyond 256 that brings nothing.
"""

from __future__ import annotations

import os
from typing import Final

from plr_kernels.dispatch.errors import SettingError

WORKSPACE_VARIABLE: Final = "PLR_KERNELS_WORKSPACE_MB"
DEFAULT_MEGABYTES: Final = 512

MOST_ROWS: Final = 256
# With fewer rows at once, reading and adding to the items' gradient takes as long as the product that is saved.
LEAST_ROWS: Final = 128
_PANEL: Final = 32  # rows are multiplied in panels of so many


def _from_environment() -> int:
    """The megabytes that the environment variable names."""
    text = os.environ.get(WORKSPACE_VARIABLE, str(DEFAULT_MEGABYTES))
    if not (text.isascii() and text.isdigit()):
        raise SettingError(f"{WORKSPACE_VARIABLE}: must be a whole number of megabytes, 0 or more; found {text!r}")
    return int(text)


_megabytes: int = _from_environment()


def rows_at_once(rows: int, items: int, group: int = 1) -> int:
    """How many of the rows go through together, a multiple of `group`; 0 where gradients are left to a backward pass.

    Args:
        rows: R, all of them.
        items: V.
        group: rows that must not be parted.
    """
    affordable = (_megabytes << 20) // (4 * items) // _PANEL * _PANEL
    if affordable < LEAST_ROWS and affordable < rows:
        return 0
    return min(affordable, max(MOST_ROWS, group)) // group * group
