"""From a configuration to the item data it names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from plr.config import Config
from plr.items.features import read_features
from plr.items.item_data import ItemData
from plr.text import TextVectors

__all__ = ["load_item_data"]


def load_item_data(config: Config, item_ids: Sequence[str], saved: Path) -> ItemData:
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
