"""The definition of linear_cross_entropy (PLR, arXiv 2601.03153, Eq. 1, the next-item loss)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def linear_cross_entropy(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, reduction: str
) -> Tensor:
    """−log softmax(states itemsᵀ / temperature)[target] per row, over the rows whose target is not ignore_index."""
    # Ignored rows become 0 before the product: the gradient of items would be NaN for a NaN in one, 0 · NaN being NaN.
    states = states.masked_fill((targets == ignore_index).unsqueeze(1), 0)
    logits = states @ items.T / temperature  # [R, V]
    losses = cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")  # [R]
    return reduced(losses, targets, ignore_index, reduction)


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """The rows' losses [R] as they are, their sum, or their mean over those that count (0 without any)."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (targets != ignore_index).sum().clamp(min=1)
