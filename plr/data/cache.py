"""A folder per prepared dataset: safetensors, Parquet and JSON, never a pickle."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import polars as pl
from safetensors.torch import load, save_file

from plr.data.atomic import atomic_path
from plr.data.dataset import SequenceDataset
from plr.data.split import SPLITS

__all__ = ["CACHE_VERSION", "load_cached", "save_cached"]

CACHE_VERSION = 1
"""Raised with every change of what is stored or of how a dataset is made from a file."""

_MANIFEST = "manifest.json"
_TENSORS = "sequences.safetensors"
_USERS = "users.parquet"
_ITEMS = "items.parquet"


def save_cached(dataset: SequenceDataset, folder: Path) -> None:
    """Write ``dataset`` as ``folder``: whole or not at all."""
    with atomic_path(folder) as aside:
        aside.mkdir()
        tensors = {"items": dataset.items, "offsets": dataset.offsets, "training_stop": dataset.training_stop}
        tensors |= {f"targets.{name}": targets for name, targets in dataset.targets.items()}
        save_file(tensors, aside / _TENSORS)
        dataset.user_ids.to_frame("id").write_parquet(aside / _USERS)
        dataset.item_ids.to_frame("id").write_parquet(aside / _ITEMS)
        manifest = {
            "version": CACHE_VERSION,
            "content_hash": dataset.content_hash,
            "split": dataset.split,
            "report": dataset.report,
            "sha256": {name: _sha256(aside / name) for name in (_TENSORS, _USERS, _ITEMS)},
        }
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def load_cached(folder: Path, content_hash: str) -> SequenceDataset | None:
    """Return the dataset stored as ``folder``, or None where there is none.

    A folder that holds something else, or whose files do not have the hashes of its manifest, also gives
    None, with a warning.
    """
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if (manifest["version"], manifest["content_hash"]) != (CACHE_VERSION, content_hash):
            raise ValueError("it belongs to other data")
        for name in (_TENSORS, _USERS, _ITEMS):
            if _sha256(folder / name) != manifest["sha256"][name]:
                raise ValueError(f"{name} is not as it was written")
        tensors = load((folder / _TENSORS).read_bytes())
        return SequenceDataset(
            items=tensors["items"],
            offsets=tensors["offsets"],
            targets={name: tensors[f"targets.{name}"] for name in SPLITS},
            training_stop=tensors["training_stop"],
            user_ids=pl.read_parquet(folder / _USERS)["id"],
            item_ids=pl.read_parquet(folder / _ITEMS)["id"],
            split=manifest["split"],
            report=manifest["report"],
            content_hash=content_hash,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the cache {folder} cannot be used and is built again: {error}", stacklevel=3)
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
