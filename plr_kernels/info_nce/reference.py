"""The definition of info_nce (PLR, arXiv 2601.03153, Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Norms below this count as this, as in torch.nn.functional.cosine_similarity: a zero vector has similarity 0.
NORM_FLOOR = 1e-8


def info_nce(view1: Tensor, view2: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    """Mean over groups of the batch mean of both directions' cross-entropies of cosine similarities."""
    groups, batch, _ = view1.shape
    unit1, unit2 = normalize(view1, dim=-1, eps=NORM_FLOOR), normalize(view2, dim=-1, eps=NORM_FLOOR)
    similarities = unit1 @ unit2.transpose(-2, -1) / temperature  # [G, B, B]
    if labels is not None:
        alike = (labels[:, :, None] == labels[:, None]).any(dim=-1)  # [G, B, B]
        positive = torch.eye(batch, dtype=torch.bool, device=alike.device)
        similarities = similarities.masked_fill(alike & ~positive, float("-inf"))
    view1_to_view2 = similarities.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)  # [G, B]
    view2_to_view1 = similarities.log_softmax(dim=-2).diagonal(dim1=-2, dim2=-1)
    return -(view1_to_view2 + view2_to_view1).sum() / max(groups * batch, 1)
