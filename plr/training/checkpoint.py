"""Checkpoints that are whole or not there, and are read without unpickling anything."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from plr.errors import RunError
from plr.files import atomic_path
from plr.signals import deferred

REQUIRED = frozenset({"epoch", "state_dict", "optimizer_states", "callbacks", "loops", "pytorch-lightning_version"})
"""What is in every checkpoint of Lightning's that a run can go on from."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes aside, then renames; reads weights-only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old one or the new one.

        Raises:
            RunError: a callback's state could not be read again.
        """
        for name, state in checkpoint.get("callbacks", {}).items():
            _check_state(name, state)
        # A signal waits: the exception that it raises in what torch.save calls back comes out of it as another one.
        with deferred(), atomic_path(Path(path)) as aside, open(aside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: Any = True) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only, to the CPU: who asks for them has them elsewhere, or not.

        Lightning names no place. Where they were saved is the first process's GPU, which may not be here.
        """
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read what `AtomicCheckpointIO` wrote.

    Raises:
        RunError: the file is not such a checkpoint.
    """
    try:
        fault = _fault(path)
        checkpoint = {} if fault else torch.load(path, map_location=map_location, weights_only=True)
        missing = sorted(REQUIRED.difference(checkpoint))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of torch's, whose messages advise to unpickle what is there
        raise RunError(_unusable(path, "its content is not a checkpoint's")) from error
    if fault or missing:
        raise RunError(_unusable(path, fault or f"it lacks {', '.join(missing)}"))
    return checkpoint


def _check_state(name: str, state: Any) -> None:
    """Raise unless the state that a callback keeps is of tensors and plain values: else no run would go on from it."""
    kept = io.BytesIO()
    torch.save(state, kept)
    kept.seek(0)
    try:
        torch.load(kept, weights_only=True)
    except Exception as error:  # of torch's, whose messages advise to unpickle what is there
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"; found {found[1]}" if found else ""
        raise RunError(
            f"callback {name}: its state_dict() must be of tensors, Python numbers, strings, lists and dictionaries, "
            f"or the run could not be resumed{what}"
        ) from error


def _fault(path: Path) -> str | None:
    """Return what is wrong with the file as an archive, whose checksums torch does not look at; None where all is well.

    Raises:
        OSError: it cannot be read at all.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return "it is empty"
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except Exception:  # of damage zipfile says many things
            return "it is cut off, damaged or something else"
    return None if damaged is None else f"{damaged} in it is damaged"


def _unusable(path: Path, reason: str) -> str:
    return f"{path}: not a readable checkpoint ({reason}); delete it to train from the start"
