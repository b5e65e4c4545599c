"""The definition of pairwise_kl (PLR, arXiv 2601.03153, Eq. 7; ReaRec, arXiv 2503.22675, with detach_reference)."""

from __future__ import annotations

from torch import Tensor


def pairwise_kl(states: Tensor, items: Tensor, temperature: float, detach_reference: bool) -> Tensor:
    """Mean over b and ordered pairs i != j of KL(p_i || p_j), with p = softmax(states itemsᵀ / temperature)."""
    batch, group, _ = states.shape
    log_p = (states @ items.T / temperature).log_softmax(dim=-1)  # [B, N, V]
    log_q = log_p.detach() if detach_reference else log_p
    others = log_q.sum(dim=1, keepdim=True) - log_q  # Σ_{j≠i} log p_j
    # Σ_{j≠i} KL(p_i || p_j) = Σ_v p_i(v) Σ_{j≠i} (log p_i(v) − log p_j(v))
    divergences = (log_p.exp() * ((group - 1) * log_p - others)).sum(dim=-1)  # [B, N]
    return divergences.sum() / max(batch * group * (group - 1), 1)
