"""The options that a run takes over from the one that it goes on from."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plr.config import OF_THE_DATA, Config, is_own_frame, without_derived
from plr.errors import RunError
from plr.options import RawDataOptions
from plr.prepare.folder import is_prepared

__all__ = ["of_one_run", "options_of_parent"]

_OF_THE_RUN = frozenset(("data", "out", "init", "from_run", "new_items", "provenance"))


def options_of_parent(run: str, data: str, out: str) -> dict[str, Any]:
    """Return the fields that a run takes over from its parent where they are not given.

    Those that say of one run alone what it is are left out, and the times at which its data were cut. So are, for a
    prepared folder, the options of raw data, and the format of a parent's frame. Where the parent is gone they are
    those of the unfinished run that began at it.

    Args:
        run: the parent's folder.
        data: what the run is trained on.
        out: its folder.

    Raises:
        FileNotFoundError: there is no finished run, nor an unfinished one that began at it.
        ConfigError: the parent's configuration cannot be read.
    """
    config = _parent(run, out)
    left_out = of_one_run(data)
    if is_own_frame(config):
        left_out |= {"format"}
    values = without_derived(asdict(config))
    return {name: value for name, value in values.items() if name not in left_out}


def of_one_run(data: str | None) -> frozenset[str]:
    """Return the fields that no run takes over from the one that it goes on from: they say what that run alone was.

    Args:
        data: the file or folder that the run is trained on; None: a frame.
    """
    fields = _OF_THE_RUN.union(OF_THE_DATA)
    if data is not None and any(map(is_prepared, (Path(data), Path(os.environ.get("PLR_DATA", "")) / data))):
        return fields.union(RawDataOptions.__dataclass_fields__)
    return fields


def _parent(run: str, out: str) -> Config:
    folder = Path(run)
    if (folder / "metrics.json").exists():
        return Config.load(folder / "config.yaml")
    begun = Path(out) / "config.yaml"
    if out and begun.exists():
        config = Config.load(begun)
        if config.from_run == run:
            return config
    if (folder / "config.yaml").exists():
        raise RunError(
            f"--from {run}: the run is not finished; repeat its `plr train --config {folder / 'config.yaml'}` to "
            "resume it"
        )
    raise FileNotFoundError(f"--from {run}: no run here (config.yaml is missing); make one with `plr train --out`")
