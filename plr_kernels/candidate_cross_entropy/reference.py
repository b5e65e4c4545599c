"""The definitions of candidate_cross_entropy and of candidate_mixture_cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from plr_kernels.linear_cross_entropy.reference import reduced
from plr_kernels.mixture_cross_entropy.reference import mixed


def candidate_cross_entropy(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    kind: str,
    positive_power: float,
    temperature: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Cross-entropy of the target among itself and the candidates, or a sigmoid for each of these."""
    ignored, padding = targets == ignore_index, candidates < 0
    # Ignored rows become 0 before the product: the gradient of items would be NaN for a NaN in one, 0 · NaN being NaN.
    # So do items that nothing names, in whose place the first one is looked up.
    states = states.masked_fill(ignored[:, None], 0)
    own = items[targets.masked_fill(ignored, 0)].masked_fill(ignored[:, None], 0)
    of_target = (states * own).sum(dim=1, keepdim=True) / temperature  # [R, 1]
    unnamed = padding if candidates.ndim == 1 else padding | ignored[:, None]
    listed = items[candidates.clamp(min=0)].masked_fill(unnamed[..., None], 0)  # [K, D] or [R, K, D]
    scores = states @ listed.T if candidates.ndim == 1 else (listed @ states[:, :, None]).squeeze(2)
    scores = scores / temperature  # [R, K]
    if log_q is not None:
        scores = scores - log_q
    left_out = (candidates == targets[:, None]) | padding  # [R, K]
    if kind == "softmax":
        logits = torch.cat([of_target, scores.masked_fill(left_out, float("-inf"))], dim=1)
        losses = cross_entropy(logits, torch.zeros_like(targets), reduction="none")  # [R]
    else:
        negatives = -logsigmoid(-scores).masked_fill(left_out, 0).sum(dim=1)
        losses = (negatives - positive_power * logsigmoid(of_target).squeeze(1)) / (candidates.shape[-1] + 1)
    return reduced(losses.masked_fill(ignored, 0), targets, ignore_index, reduction)


def candidate_mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    temperature: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """−log Σ_m exp(log_weights[m]) p_m(target), p_m of each stream among the target and the candidates."""
    streams = states.shape[1]
    losses = candidate_cross_entropy(
        states.flatten(0, 1),
        items,
        targets.repeat_interleave(streams),
        *of_streams(streams, candidates, log_q),
        "softmax",
        1.0,
        temperature,
        ignore_index,
        "none",
    )
    return mixed(losses.view(-1, streams), log_weights, targets, ignore_index, reduction)


def of_streams(streams: int, candidates: Tensor, log_q: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The candidates [K] or [R, K] of rows as those of their streams, which are M·R rows; and log_q."""
    if candidates.ndim == 1:
        return candidates, log_q
    return candidates.repeat_interleave(streams, 0), None if log_q is None else log_q.repeat_interleave(streams, 0)
