"""The "triton" backend of target_mixture_rank: one sweep for the streams' normalisers, one for the counts."""

from torch import Tensor

from plr_kernels.target_rank.triton_kernels import counts
from plr_kernels.triton_shared.ranking import logit_scale, mixture_offsets


def forward(
    states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items are more probable than the target under the mixture, and how many as much: int64 [R]."""
    offsets = mixture_offsets(states, log_weights, items, temperature) if states.shape[0] else None
    return counts(states, offsets, items, targets, logit_scale(temperature), exclude)
