"""Few counts of rows: oneDNN makes machine code anew for every count that it has not had.

That takes as long as many a product of a training step, and batches of histories seldom have as many rows as one
before. So rows are padded to one of few counts, whose code is kept (docs/findings.md has what it brings).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["few_counts"]

_LEAST, _STEP = 16, 256


def few_counts(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[R, K] -> [R', K] in the dtype, zeros behind the rows; R' is a power of two up to 256, then a multiple of 256.

    The rows themselves where they are as many and of the dtype. Where a mode looks on, as one that counts operations
    does, nothing is added for it to see.
    """
    dtype = rows.dtype if dtype is None else dtype
    if _get_current_dispatch_mode() is not None:
        return rows.to(dtype)
    count = len(rows)
    padded = max(_LEAST, 1 << (count - 1).bit_length()) if count <= _STEP else -(-count // _STEP) * _STEP
    if padded == count:
        return rows.to(dtype)
    result = rows.new_empty(padded, rows.shape[1], dtype=dtype)
    result[:count] = rows
    result[count:] = 0
    return result
