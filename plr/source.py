"""From a configuration to the prepared data set it names."""

from __future__ import annotations

import os
from pathlib import Path

from plr.config import Config, ConfigError
from plr.data import DataError, SequenceDataset, open_prepared, prepare
from plr.data.prepared import is_prepared


def resolve(name: str) -> Path:
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
        found = sorted(Path(folder).glob(path.name)) or sorted(Path(folder).glob(f"{path.name}.*"))
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"--data {name}: several files match: {', '.join(map(str, found))}; give one's path")
        tried.append(str(Path(folder) / f"{path.name}[.*]"))
    hint = "" if folder else " (set PLR_DATA to a folder to use names)"
    raise DataError(f"--data {name}: no such file; tried {', '.join(tried)}{hint}")


OPTIONS = (
    "format", "user_column", "item_column", "rating_column", "timestamp_column", "min_rating", "core", "split",
    "valid_time", "test_time",
)  # fmt: skip
"""The fields of the configuration that say how a raw file is prepared."""


def _refuse_options(config: Config, path: Path) -> None:
    given = [name for name in OPTIONS if getattr(config, name) != getattr(Config, name)]
    if given:
        raise ConfigError(f"{path} is prepared already; {', '.join(given)} must be given to plr prepare instead")


def load_dataset(config: Config, data: str | None = None) -> SequenceDataset:
    """Prepare the configured data, or another file `data` with the same options; or open a prepared folder.

    Raises:
        ConfigError: an option of preparing is set, and the data are prepared already.
        DataError: the data cannot be used.
    """
    path = resolve(data or config.data)
    if is_prepared(path):
        if data is None:
            _refuse_options(config, path)
        return open_prepared(path)
    return prepare(
        path,
        **{name: getattr(config, name) for name in OPTIONS},
        cache_dir=config.cache,
    )
