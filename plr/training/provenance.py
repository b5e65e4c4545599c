"""What a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from plr.version import __version__

BATCH = {"batch_size": "of all devices"}
"""What the records of runs on several devices lack that were made when batch_size was each device's."""

PACKAGES = ("torch", "numpy", "lightning", "polars", "safetensors")


def provenance(
    data_hash: str,
    item_data_hash: str | None = None,
    init_hash: str | None = None,
    parent: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the versions that a result depends on, and the hashes of what was read and of what the weights are from.

    Args:
        data_hash, item_data_hash: of the data, and of what is known about the items.
        init_hash: of a first phase's weights.
        parent: the run that this one goes on from: its folder, its digest, its weights' hash, and that of the file with
            what this one begins with.
    """
    return {
        "data_hash": data_hash,
        **({} if item_data_hash is None else {"item_data_hash": item_data_hash}),
        **({} if init_hash is None else {"init_hash": init_hash}),
        **({} if parent is None else {"parent": parent}),
        **BATCH,
        "plr": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
