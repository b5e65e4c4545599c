"""A run on several machines: they must see one folder, and have the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from plr.errors import RunError
from plr.training.shared_ranking import gather_rows

__all__ = ["SameRun"]


class SameRun(Callback):
    """Before its first step each process says what it sees; where they differ all end.

    Args:
        folder: the run's, in which the first process has written by then.
        content_hash: of the data, hexadecimal digits.
    """

    def __init__(self, folder: Path, content_hash: str):
        self.folder = folder
        self.content_hash = content_hash

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Compare.

        Raises:
            RunError: a process does not see the folder, or has other data; says which.
        """
        seen = float((self.folder / "config.yaml").exists())
        digits = [float(int(digit, 16)) for digit in self.content_hash]
        every = gather_rows(torch.tensor([seen, *digits], dtype=torch.float64)).unflatten(0, (trainer.world_size, -1))
        blind = (every[:, 0] == 0).nonzero()[:, 0].tolist()
        if blind:
            raise RunError(
                f"--out {self.folder}: process {blind[0]} of {trainer.world_size} does not see the run there; all "
                "machines need the folder on a file system that they share, under the same path"
            )
        others = (every[:, 1:] != every[0, 1:]).any(dim=1).nonzero()[:, 0].tolist()
        if others:
            raise RunError(f"process {others[0]} of {trainer.world_size} has other data than process 0")
