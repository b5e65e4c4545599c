"""The dropout mask of the attention probabilities: a pure function of seed and position, the same on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.stream_attention.philox import philox, split_words

_PREFIX_PART, _STREAM_PART = 0, 1


def dropout_threshold(dropout_p: float) -> int:
    """The number in [0, 2^32] that a random word must reach for its entry to be kept."""
    return round(dropout_p * 2**32)


def _keep(seed: Tensor, threshold: int, rows: Tensor, entries: int, part: int) -> Tensor:
    """Which of a row's entries are kept: bool [..., entries] for int64 rows [...]."""
    quads = torch.arange((entries + 3) // 4, device=seed.device)  # one draw serves four neighbouring entries
    row_low, row_high = split_words(rows.unsqueeze(-1))
    words = philox((quads, row_low, row_high, torch.full_like(quads, part)), split_words(seed))
    return torch.stack(words, dim=-1).flatten(-2)[..., :entries] >= threshold


def attention_keep_mask(
    seed: Tensor, dropout_p: float, batch: int, heads: int, streams: int, prefix: int, suffix: int
) -> tuple[Tensor, Tensor]:
    """Which attention probabilities dropout keeps.

    Philox 4x32-10 with the 64-bit seed as its key (low word, high word) and the counter (entry // 4, row low
    word, row high word, part): row = (b·H + h)·M + m, part = 0 for the prefix and 1 for the stream's own
    entries, entry = the index within its part. The entry takes word entry % 4 of the four, and is kept when
    that is >= round(dropout_p·2^32). Hence neither the padding of a batch nor the number of entries moves any
    other entry's draw.

    Args:
        seed: int64 [], on the device of the mask.
        dropout_p: the probability of being dropped, in [0, 1).
        batch, heads, streams, prefix, suffix: the sizes B, H, M, P, S.

    Returns:
        The masks of the two parts: bool [B, H, M, P] and bool [B, H, M, S].
    """
    rows = torch.arange(batch * heads * streams, device=seed.device).view(batch, heads, streams)
    threshold = dropout_threshold(dropout_p)
    return (
        _keep(seed, threshold, rows, prefix, _PREFIX_PART),
        _keep(seed, threshold, rows, suffix, _STREAM_PART),
    )
