"""From a configuration to the prepared data set it names."""

from __future__ import annotations

import os
from pathlib import Path

from plr.config import Config
from plr.data import DataError, SequenceDataset, prepare


def resolve(name: str) -> Path:
    """Return the file that `--data` means: a path, or a name in the folder $PLR_DATA with or without its extension.

    Raises:
        DataError: there is no such file; lists what was tried.
    """
    if not name:
        raise DataError("--data is missing: name a file of interactions")
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


def load_dataset(config: Config, data: str | None = None) -> SequenceDataset:
    """Prepare the configured data, or another file `data` with the same options."""
    return prepare(
        resolve(data or config.data),
        format=config.format,
        user_column=config.user_column,
        item_column=config.item_column,
        rating_column=config.rating_column,
        timestamp_column=config.timestamp_column,
        min_rating=config.min_rating,
        core=config.core,
        split=config.split,
        valid_time=config.valid_time,
        test_time=config.test_time,
        cache_dir=config.cache,
    )
