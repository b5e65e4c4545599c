"""The definition of mixture_cross_entropy: the negative log-likelihood of a mixture of item distributions."""

from __future__ import annotations

from torch import Tensor, log_softmax, logsumexp

from plr_kernels.dispatch.precision import upcast
from plr_kernels.linear_cross_entropy.reference import reduced


def mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """−log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[target] per row that counts."""
    ignored = targets == ignore_index  # [R]
    # Ignored rows become 0 before the product: the gradient of items would be NaN for a NaN in one, 0 · NaN being NaN.
    states = states.masked_fill(ignored[:, None, None], 0)
    log_weights = log_weights.masked_fill(ignored[:, None], 0)
    log_p = log_softmax(states @ items.T / temperature, dim=2)  # [R, M, V]
    index = targets.masked_fill(ignored, 0)[:, None, None].expand(-1, states.shape[1], 1)
    log_p_target = log_p.gather(2, index).squeeze(2)  # [R, M], −CE_m
    losses = -logsumexp(log_weights + log_p_target, dim=1)  # [R]
    return reduced(losses.masked_fill(ignored, 0), targets, ignore_index, reduction)


def mixed(losses: Tensor, log_weights: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """The loss of mixtures from the cross-entropies [R, M] of their states, 0 where a row does not count."""
    ignored = targets == ignore_index
    log_weights = upcast(log_weights).masked_fill(ignored[:, None], 0)
    mixture = -logsumexp(log_weights - losses, dim=1)
    return reduced(mixture.masked_fill(ignored, 0), targets, ignore_index, reduction)
