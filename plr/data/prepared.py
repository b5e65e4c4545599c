"""A prepared data set as a folder: safetensors, Parquet and JSON, never a pickle.

manifest.json           what it was made from and how: sources with their hashes, options, statistics, versions
sequences.safetensors   items, offsets, roles, training_stop, as in SequenceDataset; mapped into memory when opened
users.parquet           user_id; row u is user u
items.parquet           item_id, and where metadata were given title, categories, store, text; row i is item i
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import plr
from plr.data.atomic import atomic_path
from plr.data.blocks import in_threads
from plr.data.errors import DataError
from plr.data.ids import Ids

if TYPE_CHECKING:
    from plr.data.dataset import SequenceDataset

__all__ = [
    "ARRAYS",
    "FORMAT_VERSION",
    "ITEMS",
    "MANIFEST",
    "Prepared",
    "is_prepared",
    "load_cached",
    "open_prepared",
    "save_prepared",
]

FORMAT_VERSION = 2
"""Raised with every change of what is stored or of how a data set is made from a file."""

MANIFEST = "manifest.json"
ITEMS = "items.parquet"
_FORMAT = "plr prepared data set"
_SEQUENCES = "sequences.safetensors"
_USERS = "users.parquet"
_FILES = (_SEQUENCES, _USERS, ITEMS)
ARRAYS = ("items", "offsets", "roles", "training_stop")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a preparation makes: the attributes of SequenceDataset as arrays, so that PyTorch need not be there."""

    items: np.ndarray
    offsets: np.ndarray
    roles: np.ndarray
    training_stop: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    split: str
    report: dict
    content_hash: str


def is_prepared(path: Path) -> bool:
    """Return whether ``path`` is a folder with a manifest."""
    return (path / MANIFEST).is_file()


def save_prepared(
    prepared: Prepared, folder: Path, features: pl.DataFrame | None = None, *, replace: bool = True
) -> None:
    """Write ``prepared`` as ``folder``: whole or not at all.

    Args:
        prepared: What to write.
        folder: Where to.
        features: What is known about the items, row i about item i, beside the ``item_id``.
        replace: Whether a folder that is there is replaced; else a FileExistsError is raised.

    Raises:
        DataError, OSError: a file cannot be written.
    """
    with atomic_path(folder, replace=replace) as aside:
        aside.mkdir()
        arrays = {name: np.ascontiguousarray(getattr(prepared, name)) for name in ARRAYS}
        items = prepared.item_ids.to_frame("item_id")
        writers = {
            # Ids are too random for the usual level of Zstandard to find more in them than the fastest.
            _USERS: partial(prepared.user_ids.to_frame("user_id").write_parquet, compression_level=1),
            _SEQUENCES: partial(save_file, arrays),
            ITEMS: (items if features is None else items.hstack(features)).write_parquet,
        }

        def write(name: str) -> dict[str, Any]:
            try:
                writers[name](aside / name)
            except (SafetensorError, pl.exceptions.PolarsError) as error:  # a full disk, say
                raise DataError(f"{name} cannot be written: {error}", folder) from error
            return {"bytes": (aside / name).stat().st_size, "sha256": _sha256(aside / name)}

        files = dict(zip(writers, in_threads(write, writers), strict=True))
        manifest = {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "content_hash": prepared.content_hash,
            "split": prepared.split,
            "users": len(prepared.user_ids),
            "items": len(prepared.item_ids),
            "interactions": len(prepared.items),
            "written_by": {"plr": plr.__version__, "polars": pl.__version__},
            "report": prepared.report,
            "files": {name: files[name] for name in _FILES},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


def open_prepared(folder: Path, *, verify: bool = False) -> SequenceDataset:
    """Open a prepared folder. The arrays are mapped and the ids not read before they are asked for.

    Sizes and shapes are checked; with ``verify`` also the hashes of all files, for which each is read whole.

    Raises:
        DataError: it is not such a folder, of another version, or not as it was written.
    """
    from plr.data.dataset import SequenceDataset  # brings PyTorch, which nothing else here needs

    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"not a prepared data set: {MANIFEST} is missing (make one with plr prepare)", folder)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise DataError(f"not the manifest of a prepared data set: its format is {manifest['format']!r}", path)
        if manifest["version"] != FORMAT_VERSION:
            raise DataError(
                f"format version {manifest['version']}; this plr reads {FORMAT_VERSION}. Prepare the data again",
                path,
            )
        for name in _FILES:
            _check(folder / name, manifest["files"][name], verify)
        with safe_open(folder / _SEQUENCES, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ARRAYS}
        users, items, interactions = (int(manifest[key]) for key in ("users", "items", "interactions"))
        shapes = {"items": interactions, "offsets": users + 1, "roles": interactions, "training_stop": users}
        for name, size in shapes.items():
            if tuple(tensors[name].shape) != (size,):
                raise DataError(f"{name} has the shape {tuple(tensors[name].shape)}; expected ({size},)", folder)
        if int(tensors["offsets"][0]) != 0 or int(tensors["offsets"][-1]) != interactions:
            raise DataError(f"the offsets do not span the {interactions} interactions", folder)
        return SequenceDataset(
            **tensors,
            users=Ids(lambda: _ids(folder / _USERS, "user_id", users), users),
            vocabulary=Ids(lambda: _ids(folder / ITEMS, "item_id", items), items),
            split=manifest["split"],
            report=manifest["report"],
            content_hash=manifest["content_hash"],
            item_features=folder / ITEMS,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a damaged prepared data set ({type(error).__name__}: {error}); prepare it again", folder
        ) from error


def load_cached(folder: Path, content_hash: str) -> SequenceDataset | None:
    """Return the data set stored as ``folder``, or None where there is none.

    A folder that holds something else, or whose files do not have the hashes of its manifest, also gives
    None, with a warning.
    """
    if not folder.exists():
        return None
    try:
        dataset = open_prepared(folder, verify=True)
        if dataset.content_hash != content_hash:
            raise DataError("it belongs to other data", folder)
    except DataError as error:
        warnings.warn(f"the cache {folder} cannot be used and is built again: {error.reason}", stacklevel=3)
        return None
    return dataset


def _check(file: Path, entry: dict, verify: bool) -> None:
    size = file.stat().st_size
    if size != entry["bytes"] or (verify and _sha256(file) != entry["sha256"]):
        raise DataError("not as it was written: its size or hash is not the manifest's; prepare the data again", file)


def _ids(file: Path, column: str, count: int) -> pl.Series:
    try:
        ids = pl.read_parquet(file, columns=[column], glob=False)[column]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", file) from error
    if len(ids) != count:
        raise DataError(f"{len(ids)} ids; expected {count}", file)
    return ids


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
