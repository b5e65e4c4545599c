"""A run on several machines: they must see one folder, have the same data, and be told the same."""

from __future__ import annotations

import json
import secrets
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from plr.config import Config
from plr.errors import RunError
from plr.training.shared_ranking import gather_rows

__all__ = ["SameRun"]

_SECONDS = 30.0
"""For so long a file system may show a machine what its folder was before."""


class SameRun(Callback):
    """Before its first step each process says what it sees; where they differ all end.

    Args:
        folder: the run's, which the first process has made by then.
        config: as this process was given it.
        content_hash: of the data, hexadecimal digits.
    """

    def __init__(self, folder: Path, config: Config, content_hash: str):
        self.folder = folder
        options = json.dumps(config.decisive(), sort_keys=True, default=str)
        self.hashes = {"options": sha256(options.encode()).hexdigest(), "data": content_hash}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Compare.

        Raises:
            RunError: a process does not see the folder, or has other options or data; says which.
        """
        for what, content in self.hashes.items():
            _refuse_others(_said([float(int(digit, 16)) for digit in content]), f"has other {what} than process 0")
        # A folder of an earlier run may lie under this path on a machine's own disk: the mark is this start's alone.
        number = int(_said([float(secrets.randbits(50))])[0, 0])
        mark = self.folder / f".{number:013x}"
        if trainer.global_rank == 0:
            mark.touch()
        try:
            gather_rows(torch.zeros(1))  # behind the making of the mark
            seen = _said([float(_appears(mark))])
        finally:
            if trainer.global_rank == 0:
                mark.unlink(missing_ok=True)
        _refuse_others(
            seen,
            f"does not see in --out {self.folder} what process 0 writes there; all machines need the folder on a file "
            "system that they share, under the same path",
        )


def _said(values: list[float]) -> Tensor:
    """Return what each process says: float64 [processes, values]."""
    return gather_rows(torch.tensor(values, dtype=torch.float64)).unflatten(0, (-1, len(values)))


def _refuse_others(said: Tensor, fault: str) -> None:
    others = (said != said[0]).any(dim=1).nonzero()[:, 0].tolist()
    if others:
        raise RunError(f"process {others[0]} of {len(said)} {fault}")


def _appears(mark: Path) -> bool:
    end = time.monotonic() + _SECONDS
    while not mark.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
