"""Operators written by FlexAttention, PyTorch's compiler for attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bench.attention import join_masked


def stream_attention(
    queries: int, prefix: int, suffix: int, device: torch.device, of_a_position: int = 0
) -> Callable[..., Tensor]:
    """Over the prefix and all streams' entries, masked to each query's own stream.

    With `of_a_position` the queries are those of a sequence's positions, so many each, which see what is up to theirs.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, entry: Tensor) -> Tensor:
        length = query // of_a_position + 1 if of_a_position else prefix  # at most the prefix
        return (entry < length) | ((entry >= prefix) & ((entry - prefix) // suffix == query))

    mask: BlockMask = create_block_mask(sees, None, None, queries, prefix + queries * suffix, device=device)
    run = _compiled(device)

    def call(
        query: Tensor, prefix_key: Tensor, prefix_value: Tensor, stream_key: Tensor, stream_value: Tensor
    ) -> Tensor:
        key, value = join_masked(prefix_key, stream_key), join_masked(prefix_value, stream_value)
        return run(query, key, value, block_mask=mask)

    return call


def pairwise_kl(device: torch.device | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """With the states as queries and the items as keys and values.

    KL(p_i || p_j) = Σ_v p_i(v) (s_i(v) − s_j(v)) − lse_i + lse_j, where s are the scores; Σ_v p_i(v) s_j(v) is the
    product of h_j and the attention's output for h_i. Over all ordered pairs −lse_i + lse_j cancel.
    """
    run = _compiled(device)

    def call(states: Tensor, items: Tensor) -> Tensor:
        batch, group, dim = states.shape
        rows = states.reshape(1, 1, batch * group, dim)
        table = items[None, None]
        mean = run(rows, table, table, scale=1.0).reshape(batch, group, dim).float()  # Σ_v p(v) E[v]
        sums = states.float().sum(dim=1, keepdim=True)
        # Σ_{j≠i} m_i·(h_i − h_j) = m_i·(N h_i − Σ_j h_j)
        divergences = (mean * (group * states.float() - sums)).sum(dim=-1)  # [B, N]
        return divergences.sum() / (batch * group * (group - 1))

    return call


def _compiled(device: torch.device | None) -> Callable[..., Tensor]:
    """Compiled on GPUs; elsewhere its definition in eager PyTorch."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
