"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback


class ReturnFreedMemory(Callback):
    """After every epoch glibc returns what has been freed.

    Batches differ in length, hence so do all tensors of a step; glibc fits them into a heap that grows by fragments,
    and keeps it. Without effect where the C library is another one.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Return it."""
        if self._trim is not None:
            self._trim(0)
