"""Items, or texts, that came after training: an inductive UniSRec run ranks items from their text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from plr.config import Config
from plr.errors import DataError
from plr.items import ItemData, ItemText
from plr.text import TextVectors

__all__ = ["with_new_items"]


def with_new_items(
    config: Config, item_ids: Sequence[str], data: ItemData, folder: Path
) -> tuple[list[str], ItemData]:
    """Return the run's items followed by those of a folder of text vectors that the run does not know.

    The run's items keep their vectors; those that had no text in training get the folder's. A transductive run takes
    neither: a new item has no id embedding, and that of an item without text was learned on top of the vector that
    all such items share, which the text would replace.

    Args:
        config: the run's.
        item_ids: the run's.
        data: the run's.
        folder: made by `plr embed-text --like` the folder that the run was made with; vectors of another encoder of
            the same width can be told from right ones by items that both have, alone.

    Raises:
        DataError: the run's items are more than their text, or the vectors do not fit.

    Warns:
        UserWarning: the folder says nothing new; or its vectors seem to be of another encoder.
    """
    if data.text is None or config.unisrec_mode != "inductive":
        raise DataError(
            "text vectors of new items were given, but only an inductive unisrec run knows an item by its text alone; "
            f"this run's backbone is {config.backbone!r}"
            + (", transductive" if data.text is not None else "")
        )
    vectors = TextVectors.load(folder)
    width = data.text.vectors.shape[1]
    if vectors.vectors.shape[1] != width:
        raise DataError(
            f"vectors of width {vectors.vectors.shape[1]}; the run was made with width {width}: make them with "
            "`plr embed-text --like` the folder that it was made with",
            folder,
        )
    known = set(item_ids)
    new_ids = [item_id for item_id in vectors.item_ids if item_id not in known]
    every_id = [*item_ids, *new_ids]
    given, kept = vectors.of_items(every_id, folder), data.text
    if not new_ids and not bool((given.present & ~kept.present).any()):
        warnings.warn(f"{folder}: has no item and no text beyond those that the run was made with", stacklevel=2)
    places = torch.arange(len(item_ids))
    if (reason := given.why_another_encoder(kept, places, places)) is not None:
        warnings.warn(f"{folder}: {reason}", stacklevel=2)
    merged, present = given.vectors, given.present
    merged[: len(known)][kept.present] = kept.vectors[kept.present]
    present[: len(known)] |= kept.present
    return every_id, ItemData(len(every_id), text=ItemText(merged, present))
