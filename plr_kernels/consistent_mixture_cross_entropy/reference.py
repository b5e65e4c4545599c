"""The definition of consistent_mixture_cross_entropy: of the two losses that it is the weighted sum of."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.mixture_cross_entropy.reference import mixture_cross_entropy
from plr_kernels.pairwise_kl.reference import pairwise_kl


def consistent_mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    drawn: Tensor,
    weight: float,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean cross-entropy of both views' mixtures + weight · the divergence of their drawn streams; then these."""
    cross_entropy = mixture_cross_entropy(
        *rows(states, log_weights), items, of_rows(targets), temperature, ignore_index, "mean"
    )
    divergence = pairwise_kl(drawn_states(states, drawn), items, temperature, False)
    return weighed(cross_entropy, divergence, weight)


def rows(states: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The views of [N, 2, M, D] and [N, 2, M] as rows [2N, M, D] and [2N, M]."""
    return states.flatten(0, 1), log_weights.flatten(0, 1)


def of_rows(targets: Tensor) -> Tensor:
    """What belongs to a history [N], for each of its views [2N]."""
    return targets.repeat_interleave(2)


def drawn_states(states: Tensor, drawn: Tensor) -> Tensor:
    """The drawn stream [N] of each history in both views, [N, 2, D]."""
    # Not take_along_dim, of which torch.compile makes a graph for one N alone.
    return states.gather(2, drawn[:, None, None, None].expand(-1, 2, 1, states.shape[3])).squeeze(2)


def weighed(cross_entropy: Tensor, divergence: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the logs, its parts; a weight of 0 leaves the divergence out, even one that is not finite."""
    # Not weight * divergence, which torch.func.jacfwd promotes to float64.
    loss = torch.add(cross_entropy, divergence, alpha=weight) if weight != 0 else cross_entropy.clone()
    return loss, cross_entropy.detach(), divergence.detach()
