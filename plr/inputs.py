"""From a configuration to the prepared data set and the item data that it names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import polars as pl

from plr.config import Config, is_own_frame
from plr.data import SequenceDataset, open_prepared, prepare
from plr.errors import ConfigError, DataError, listed
from plr.items import ItemData
from plr.items.features import read_features
from plr.options import RawDataOptions
from plr.prepare.folder import is_prepared
from plr.prepare.options import PrepareOptions
from plr.runs import RunFolder
from plr.text import TextVectors


def resolve(name: str, given: str = "--data") -> Path:
    """Return the file that `--data` means: a path, or a name in the folder $PLR_DATA with or without its extension.

    Raises:
        DataError: there is no such file; lists what was tried.
    """
    if not name:
        raise DataError("--data is missing: name a file of interactions or a prepared folder")
    path = Path(name)
    if path.exists():
        return path
    tried = [str(path)]
    folder = os.environ.get("PLR_DATA")
    if folder and len(path.parts) == 1:
        folder = os.path.expanduser(folder)
        found = sorted(Path(folder).glob(path.name)) or sorted(Path(folder).glob(f"{path.name}.*"))
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{given} {name}: several files match: {listed(map(str, found))}; give one's path")
        tried.append(str(Path(folder) / f"{path.name}[.*]"))
    hint = "" if folder else " (set PLR_DATA to a folder to use names)"
    remedy = "" if given == "--data" else "; name it with --data"
    raise DataError(f"{given} {name}: no such file; tried {', '.join(tried)}{hint}{remedy}")


OPTIONS = tuple(each.name for each in fields(RawDataOptions))
"""The fields of the configuration that say how a raw file is prepared."""


def _refuse_options(config: Config, path: Path) -> None:
    given = [name for name in OPTIONS if getattr(config, name) != getattr(Config, name)]
    if given:
        raise ConfigError(f"{path} is prepared already; {', '.join(given)} must be given to plr prepare instead")


def data_of_run(run: Path, config: Config) -> Path:
    """Return what the run in a folder was trained on: a frame is found where the folder has been moved.

    Raises:
        DataError: there is no such file.
    """
    if is_own_frame(config) and RunFolder(run).interactions.exists():
        return RunFolder(run).interactions
    return resolve(config.data, f"{run} was trained on")


def load_dataset(
    config: Config, data: str | None = None, run: Path | None = None, data_format: str | None = None
) -> SequenceDataset:
    """Prepare the configured data, or another file `data` with the same options; or open a prepared folder.

    `run` is the folder that the configuration is from, where nobody named the data on the command line. `data_format`
    is that of `data`, where it is not the configured one; of a run that was trained on a frame other data may have any.

    Raises:
        ConfigError: an option of preparing is set, and the data are prepared already.
        DataError: the data cannot be used.
    """
    if data is None and run is not None:
        path = data_of_run(run, config)
    else:
        path = resolve(data or config.data)
    if is_prepared(path):
        if data is None:
            _refuse_options(config, path)
        return open_prepared(path, verify=True)  # a damaged byte would train something else, silently
    options = {name: getattr(config, name) for name in OPTIONS}
    if data_format is not None:
        options["format"] = data_format
    elif data is not None and is_own_frame(config):  # the configured format is that of the frame in the run's folder
        options["format"] = "auto"
    try:
        PrepareOptions(**options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return prepare(path, **options, cache_dir=config.cache)


def load_item_data(config: Config, item_ids: Sequence[str] | pl.Series, saved: Path) -> ItemData:
    """Read what the configuration's features and text vectors name about these items.

    Args:
        config: names the files.
        item_ids: of items 0..V-1.
        saved: the run's own copy, which is enough where a file is gone.

    Raises:
        DataError: a file is missing or cannot be used.

    Warns:
        UserWarning: items have no value in a field, or no text vector.
    """
    features, text_vectors = (None if name is None else Path(name) for name in (config.features, config.text_vectors))
    if any(path is not None and not path.exists() for path in (features, text_vectors)) and saved.exists():
        return ItemData.load(saved)
    data = ItemData(
        len(item_ids),
        () if features is None else read_features(features, item_ids, config.feature_fields),
        None if text_vectors is None else TextVectors.load(text_vectors).of_items(item_ids, text_vectors),
    )
    for note in data.notes():
        warnings.warn(note, stacklevel=2)
    return data


class ItemDataHashes:
    """What identifies the item data of configurations on the same items; each file is read once, without its notes.

    Args:
        item_ids: of items 0..V-1.
    """

    def __init__(self, item_ids: Sequence[str] | pl.Series):
        self._item_ids = item_ids
        self._known: dict[tuple[object, ...], str | None] = {}

    def of(self, config: Config, saved: Path) -> str | None:
        """Return the hash that a run of the configuration has in its provenance; arguments as of `load_item_data`."""
        key = (config.features, config.feature_fields, config.text_vectors)
        if key not in self._known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._known[key] = load_item_data(config, self._item_ids, saved).content_hash
        return self._known[key]
