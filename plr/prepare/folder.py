"""A prepared data set as a folder: safetensors, Parquet and JSON, never a pickle.

manifest.json           what it was made from and how: sources with their hashes, options, statistics, versions
sequences.safetensors   items, offsets, roles, training_stop, as in SequenceDataset; mapped into memory when opened
users.parquet           user_id; row u is user u
items.parquet           item_id, and where metadata were given title, categories, store, text; row i is item i
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import save_file

from plr.errors import DataError
from plr.files import atomic_path, sha256_of
from plr.prepare.blocks import in_threads
from plr.prepare.sequences import ArrayOnDisk
from plr.version import __version__

__all__ = [
    "ARRAYS",
    "FORMAT_VERSION",
    "ITEMS",
    "MANIFEST",
    "SEQUENCES",
    "USERS",
    "Prepared",
    "damage_named",
    "has_blank_around_ids",
    "is_of_something_else",
    "is_prepared",
    "read_ids",
    "read_manifest",
    "save_prepared",
]

FORMAT_VERSION = 2
"""Raised with every change of what is stored or of how a data set is made from a file."""

MANIFEST = "manifest.json"
ITEMS = "items.parquet"
_FORMAT = "plr prepared data set"
SEQUENCES = "sequences.safetensors"
USERS = "users.parquet"
_FILES = (SEQUENCES, USERS, ITEMS)
ARRAYS = ("items", "offsets", "roles", "training_stop")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a preparation makes: the attributes of SequenceDataset as arrays, so that PyTorch need not be there.

    Of partitions the long ones are on disk.
    """

    items: np.ndarray | ArrayOnDisk
    offsets: np.ndarray
    roles: np.ndarray | ArrayOnDisk
    training_stop: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    split: str
    report: dict
    content_hash: str


def is_prepared(path: Path) -> bool:
    """Return whether ``path`` is a folder with a manifest."""
    return (path / MANIFEST).is_file()


def is_of_something_else(folder: Path) -> bool:
    """Return whether the manifest of a folder is no prepared data set's, damaged or of any version.

    One that cannot be read is a prepared data set's where no other files than such a one's are beside it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return not {path.name for path in folder.iterdir()} <= {MANIFEST, *_FILES}
    return not isinstance(manifest, dict) or manifest.get("format") != _FORMAT


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
        arrays = {name: getattr(prepared, name) for name in ARRAYS}
        items = prepared.item_ids.to_frame("item_id")
        writers: dict[str, Callable[[Path], object]] = {
            # Ids are too random for the usual level of Zstandard to find more in them than the fastest.
            USERS: partial(prepared.user_ids.to_frame("user_id").write_parquet, compression_level=1),
            SEQUENCES: partial(_save_arrays, arrays),
            ITEMS: (items if features is None else items.hstack(features)).write_parquet,
        }

        def write(name: str) -> dict[str, Any]:
            try:
                writers[name](aside / name)
            except (SafetensorError, pl.exceptions.PolarsError) as error:  # a full disk, say
                raise DataError(f"{name} cannot be written: {error}", folder) from error
            return {"bytes": (aside / name).stat().st_size, "sha256": sha256_of(aside / name)}

        files = dict(zip(writers, in_threads(write, writers), strict=True))
        manifest = {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "content_hash": prepared.content_hash,
            "split": prepared.split,
            "users": len(prepared.user_ids),
            "items": len(prepared.item_ids),
            "interactions": len(prepared.items),
            "written_by": {"plr": __version__, "polars": pl.__version__},
            "report": prepared.report,
            "files": {name: files[name] for name in _FILES},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


def _save_arrays(arrays: dict[str, np.ndarray | ArrayOnDisk], path: Path) -> None:
    """Write one-dimensional arrays in the format of safetensors; those on disk a block after the other.

    safetensors itself takes arrays in memory alone. Its bytes are the same: the length of the header (uint64), the
    header (JSON, filled up with blanks to a multiple of 8 bytes), then the arrays, those of the widest type first.
    """
    if not any(isinstance(array, ArrayOnDisk) for array in arrays.values()):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        return
    header, end = {}, 0
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        length, dtype = len(arrays[name]), arrays[name].dtype
        start, end = end, end + length * dtype.itemsize
        kind = f"{dtype.kind.upper()}{8 * dtype.itemsize}"
        header[name] = {"dtype": kind, "shape": [length], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = arrays[name]
            for block in array.blocks() if isinstance(array, ArrayOnDisk) else [array]:
                file.write(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).data)


def read_manifest(folder: Path, *, verify: bool = False) -> dict[str, Any]:
    """Return the manifest of a prepared folder whose files have the manifest's sizes; needs no PyTorch.

    With ``verify`` also the hashes of all files are checked, for which each is read whole.

    Raises:
        DataError: it is not such a folder, of another version, or not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"not a prepared data set: {MANIFEST} is missing (make one with plr prepare)", folder)
    with damage_named(folder):
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
        for name in ("users", "items", "interactions"):
            manifest[name] = int(manifest[name])
        for name in ("content_hash", "split", "report"):
            manifest[name]
        return manifest


@contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Raise what reading a damaged folder raises as a DataError that names the folder."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"a damaged prepared data set ({type(error).__name__}: {error}); prepare it again", folder
        ) from error


def _check(file: Path, entry: dict, verify: bool) -> None:
    size = file.stat().st_size
    if size != entry["bytes"] or (verify and sha256_of(file) != entry["sha256"]):
        raise DataError("not as it was written: its size or hash is not the manifest's; prepare the data again", file)


def has_blank_around_ids(folder: Path) -> bool:
    """Whether ids of a prepared folder have white space around them, which is left out since: the folder is older."""
    for name, column in ((USERS, "user_id"), (ITEMS, "item_id")):
        ids = pl.read_parquet(folder / name, columns=[column], glob=False)[column]
        if (ids.str.strip_chars() != ids).any():
            return True
    return False


def read_ids(file: Path, column: str, count: int) -> pl.Series:
    """Read the external ids of a prepared folder's users or items, of which there must be `count`."""
    try:
        ids = pl.read_parquet(file, columns=[column], glob=False)[column]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", file) from error
    if len(ids) != count:
        raise DataError(f"{len(ids)} ids; expected {count}", file)
    return ids
