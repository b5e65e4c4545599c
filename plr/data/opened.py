"""A SequenceDataset from a prepared folder or, prepared on the spot, from an interaction file."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from plr.data.dataset import SequenceDataset
from plr.errors import DataError
from plr.prepare.folder import (
    ARRAYS,
    ITEMS,
    SEQUENCES,
    USERS,
    damage_named,
    has_blank_around_ids,
    is_prepared,
    read_ids,
    read_manifest,
    save_prepared,
)
from plr.prepare.ids import Ids
from plr.prepare.options import PrepareOptions
from plr.prepare.pipeline import Preparation, warn_about
from plr.prepare.readers import find_interactions
from plr.prepare.sources import SourceFiles

__all__ = ["load_cached", "open_prepared", "prepare"]


def prepare(
    path: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None, **options: Any
) -> SequenceDataset:
    """Read an interaction file, filter it, split it, and return its sequences; or open a prepared folder.

    Users and items are numbered by their sorted external ids (strings, compared by their UTF-8 bytes). Where the
    file has timestamps a user's interactions are put in their order, equal ones staying in file order; else file
    order counts. Timestamps are whole numbers in any unit (``1.0`` and negative ones too), or in Parquet a date
    or datetime, which counts in its own unit (days, or ms, us, ns since 1970).

    Args:
        path: The file, ``user item item …`` lines, ``user item`` lines, MovieLens' ``ratings.dat``, RecBole
            ``.inter``, CSV with a header (text may be packed with gzip or Zstandard) or Parquet; a data set folder of
            Hugging Face; or a folder that ``plr prepare`` wrote.
        cache_dir: Folder in which the result is kept under the hash of file and options, and found again.
        **options: The fields of PrepareOptions. A prepared folder has its own and takes none.

    Raises:
        DataError: for anything in the file that cannot be used, naming file and line; or when no training
            row is left.
        ValueError: for arguments that make no sense.

    Warns:
        UserWarning: naming the first, when users have a single interaction and so make no row; when
            validation or test has no row; when a cache is corrupt.
    """
    path = Path(path)
    chosen = PrepareOptions(**options)
    if is_prepared(path):
        if chosen != PrepareOptions():
            raise ValueError(f"{path} is prepared already; its options cannot be changed: {', '.join(sorted(options))}")
        return open_prepared(path)
    path = find_interactions(path)
    job = Preparation(SourceFiles([path], chosen), chosen)
    if cache_dir is None:
        dataset = SequenceDataset.of(job.build())
    else:
        folder = Path(cache_dir) / job.content_hash()[:32]
        cached = load_cached(folder, job.content_hash())
        if cached is None:
            prepared = job.build()
            save_prepared(prepared, folder)
            cached = replace(SequenceDataset.of(prepared), item_features=folder / ITEMS)
        dataset = cached
    warn_about(dataset.report, path)
    return dataset


def open_prepared(folder: str | os.PathLike[str], *, verify: bool = False) -> SequenceDataset:
    """Open a prepared folder. The arrays are mapped and the ids not read before they are asked for.

    Sizes and shapes are checked; with ``verify`` also the hashes of all files, for which each is read whole.

    Raises:
        DataError: it is not such a folder, of another version, or not as it was written.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, verify=verify)
    users, items, interactions = (manifest[key] for key in ("users", "items", "interactions"))
    with damage_named(folder):
        with safe_open(folder / SEQUENCES, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ARRAYS}
        shapes = {"items": interactions, "offsets": users + 1, "roles": interactions, "training_stop": users}
        for name, size in shapes.items():
            if tuple(tensors[name].shape) != (size,):
                raise DataError(f"{name} has the shape {tuple(tensors[name].shape)}; expected ({size},)", folder)
        if int(tensors["offsets"][0]) != 0 or int(tensors["offsets"][-1]) != interactions:
            raise DataError(f"the offsets do not span the {interactions} interactions", folder)
        return SequenceDataset(
            **tensors,
            users=Ids(lambda: read_ids(folder / USERS, "user_id", users), users),
            vocabulary=Ids(lambda: read_ids(folder / ITEMS, "item_id", items), items),
            split=manifest["split"],
            report=manifest["report"],
            content_hash=manifest["content_hash"],
            item_features=folder / ITEMS,
        )


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
        if has_blank_around_ids(folder):
            raise DataError("its ids have white space around them, which is left out now", folder)
    except DataError as error:
        warnings.warn(f"the cache {folder} cannot be used and is built again: {error.reason}", stacklevel=3)
        return None
    return dataset
