"""Checkpoints that are whole or not there, and are read without unpickling anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from plr.errors import RunError
from plr.files import atomic_path
from plr.signals import deferred


class AtomicCheckpointIO(CheckpointIO):
    """Writes aside, then renames; reads weights-only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old one or the new one."""
        # A signal waits: the exception that it raises in what torch.save calls back comes out of it as another one.
        with deferred(), atomic_path(Path(path)) as aside, open(aside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: str, map_location: Any = None, weights_only: Any = True) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only."""
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str) -> None:
        """Delete a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read what `AtomicCheckpointIO` wrote.

    Raises:
        RunError: the file is not such a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        missing = {"epoch", "state_dict", "optimizer_states", "callbacks"}.difference(checkpoint)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: not a readable checkpoint ({reason}); delete it to train from the start") from error
    return checkpoint
