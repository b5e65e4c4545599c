"""Philox 4x32-10, the counter-based random generator behind the attention dropout mask.

J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). Four 32-bit
words are a pure function of a 128-bit counter and a 64-bit key, so every backend draws the same ones, in any
order.

32-bit words are held in int64 tensors, since torch has no arithmetic on uint32.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

ROUNDS: Final = 10
WORD: Final = 0xFFFFFFFF
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a 64-bit product, by 16-bit halves so that no step exceeds int64."""
    low_part = word * (constant & 0xFFFF)
    high_part = word * (constant >> 16) + (low_part >> 16)
    return high_part >> 16, (high_part & 0xFFFF) << 16 | (low_part & 0xFFFF)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words per counter.

    Args:
        counter: four int64 tensors of 32-bit words, broadcast against one another.
        key: two int64 tensors of 32-bit words, broadcast against the counter.

    Returns:
        Four int64 tensors of words in [0, 2^32).
    """
    word0, word1, word2, word3 = counter
    key0, key1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], word0)
        high1, low1 = _multiply(_MULTIPLIERS[1], word2)
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & WORD, (key1 + _KEY_STEPS[1]) & WORD
    return word0, word1, word2, word3


def split_words(value: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32-bit word of int64 values, negative ones in two's complement."""
    return value & WORD, (value >> 32) & WORD
