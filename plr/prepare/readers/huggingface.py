"""A data set as Hugging Face's ``save_to_disk`` leaves it: a folder of Arrow stream files with ``state.json``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns, look_at_others, read_columns
from plr.prepare.readers.parquet import PARQUET_ERRORS, unreadable_parquet
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, one_to_one, panics_unprinted

__all__ = ["huggingface_files", "read_huggingface"]


def huggingface_files(folder: Path) -> list[Path]:
    """Return the Arrow files of the folder in order; of a folder of splits, those of all splits.

    Raises:
        DataError: it is no such folder, or a file that it names is missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json", "splits")
        return [file for split in splits for file in huggingface_files(folder / str(split))]
    if not (folder / "state.json").is_file():
        raise DataError("not a data set folder of Hugging Face: neither state.json nor dataset_dict.json", folder)
    state = folder / "state.json"
    try:
        files = [folder / str(entry["filename"]) for entry in _json(state, "_data_files")]
    except (TypeError, KeyError) as error:
        raise DataError("an entry of '_data_files' names no file", state) from error
    if _json(state, "_indices_data_files", []):
        raise DataError("its rows are chosen by indices; save it again after flatten_indices()", folder)
    for file in files:
        if not file.is_file():
            raise DataError(f"state.json names {file.name}, which is missing", folder)
    return files


def read_huggingface(
    folder: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None
) -> Source:
    """Read the folder's files one after the other; messages name rows (1-based) of the whole.

    Raises:
        DataError: as ``read_parquet``, and for a folder that is none of Hugging Face's.
    """
    parts = []
    vocabulary = replace(vocabulary, disk=None)  # a file stands in memory anyway
    for file in huggingface_files(folder):
        try:
            with panics_unprinted():
                table = pl.read_ipc_stream(file)
        except PARQUET_ERRORS as error:
            raise unreadable_parquet(file, error, "Arrow stream") from None
        found = find_columns(table.columns, columns, file, None)
        look_at_others(file, table.lazy(), found, columns, None)
        parts.append(
            read_columns(file, table.select(*found.values()).lazy(), found, one_to_one, vocabulary, skipped=skipped)
        )
    if len({tuple(part.frame.columns) for part in parts}) > 1:
        raise DataError("its files have different columns", folder)
    if not parts:
        raise DataError("the data set holds no file", folder)
    if len(parts) == 1:
        return parts[0]
    frames = [part.frame for part in parts if isinstance(part.frame, pl.DataFrame)]  # all of them are
    return Source(folder, pl.concat(frames), one_to_one, columns=parts[0].columns)


def _json(path: Path, key: str, default: list | None = None) -> list:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content[key] if default is None else content.get(key, default)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not as Hugging Face writes it: no {key!r}", path) from error
