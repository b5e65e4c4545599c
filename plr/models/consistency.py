"""The loss of R-Drop: two views of each history predict its next item, and their distributions are drawn together."""

from __future__ import annotations

from torch import Tensor

import plr_kernels
from plr.data import Share
from plr.models.sampled_items import Candidates
from plr.options import RecommenderOptions

__all__ = ["next_item_and_consistency", "takes_one_sweep"]


def takes_one_sweep(options: RecommenderOptions, items: Candidates, share: Share | None) -> bool:
    """Return whether one sweep of the items can serve both terms of a step.

    Both are then over all items and all histories; processes weigh a term over targets and one over histories apart.
    """
    return isinstance(items, Tensor) and share is None and options.divergence_share == 1


def next_item_and_consistency(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    weight: float,
    temperature: float,
    log_weights: Tensor | None = None,
    drawn: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return {"next_item", "consistency"} from one sweep of the items (`consistent_mixture_cross_entropy`).

    The gradient of both is that of "next_item"; "consistency" is there to be seen.

    Args:
        states: [2N, M, d] as scores take them, the second view of all after the first; [2N, d] where M is 1.
        items: [V, d].
        targets: int64 [N].
        weight: of the divergence, in "consistency".
        temperature: of the item softmax.
        log_weights: [2N, M] of the mixtures; None where M is 1.
        drawn: int64 [N], of which stream the divergence is; None where M is 1.
    """
    if log_weights is None:
        states, log_weights = states[:, None], states.new_zeros(len(states), 1)
    loss, cross_entropy, divergence = plr_kernels.consistent_mixture_cross_entropy(
        of_histories(states),
        of_histories(log_weights),
        items,
        targets,
        targets.new_zeros(len(targets)) if drawn is None else drawn,
        weight=weight,
        temperature=temperature,
    )
    return {"next_item": cross_entropy + (loss - loss.detach()), "consistency": weight * divergence}


def of_histories(views: Tensor) -> Tensor:
    """Return two views of N histories, [2N, ...], as [N, 2, ...]."""
    return views.unflatten(0, (2, -1)).transpose(0, 1)
