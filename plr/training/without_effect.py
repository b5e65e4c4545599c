"""What options say and a run of these epochs and items will not do: found only once the data are read."""

from __future__ import annotations

import warnings

from plr.config import Config

__all__ = ["warn_of_parts_without_effect"]


def warn_of_parts_without_effect(config: Config, num_items: int) -> None:
    """Warn where a term of the loss never counts, or is another one, though every option is possible by itself."""
    warm_up_alone = config.method == "prl" and bool(config.contrastive_weight) and config.warmup_epochs >= config.epochs
    if warm_up_alone:
        warnings.warn(
            f"PRL's contrastive loss never counts: warmup_epochs is {config.warmup_epochs}, and the run has "
            f"{config.epochs} epochs",
            stacklevel=3,
        )
    if config.loss == "gbce" and config.gbce_t > 0 and config.negatives >= num_items - 1:
        warnings.warn(
            f"gbce is bce here, whatever gbce_t: negatives is {config.negatives}, as many as there are other items "
            f"({num_items - 1}) or more",
            stacklevel=3,
        )
