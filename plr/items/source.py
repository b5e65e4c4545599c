"""From a configuration to the item data it names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from plr.config import Config
from plr.items.features import read_features
from plr.items.item_data import ItemData

__all__ = ["load_item_data"]


def load_item_data(config: Config, item_ids: Sequence[str], saved: Path) -> ItemData:
    """Read what the configuration's features name about these items.

    Args:
        config: names the files.
        item_ids: of items 0..V-1.
        saved: the run's own copy, which is enough where a file is gone.

    Raises:
        DataError: a file is missing or cannot be used.

    Warns:
        UserWarning: items have no value in a field.
    """
    if config.features is None:
        return ItemData(len(item_ids))
    if not Path(config.features).exists() and saved.exists():
        return ItemData.load(saved)
    data = ItemData(len(item_ids), read_features(Path(config.features), item_ids, config.feature_fields))
    for note in data.notes():
        warnings.warn(note, stacklevel=2)
    return data
