"""What a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import plr

PACKAGES = ("torch", "numpy", "lightning", "polars", "safetensors")


def provenance(data_hash: str) -> dict[str, str]:
    """Return the versions of Python and the packages that a result depends on, and the data's hash."""
    return {
        "data_hash": data_hash,
        "plr": plr.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
