"""What a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

from plr.version import __version__

PACKAGES = ("torch", "numpy", "lightning", "polars", "safetensors")


def provenance(data_hash: str, item_data_hash: str | None = None, init_hash: str | None = None) -> dict[str, str]:
    """Return the versions that a result depends on, and the hashes of what was read and of a first phase's weights."""
    return {
        "data_hash": data_hash,
        **({} if item_data_hash is None else {"item_data_hash": item_data_hash}),
        **({} if init_hash is None else {"init_hash": init_hash}),
        "plr": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
