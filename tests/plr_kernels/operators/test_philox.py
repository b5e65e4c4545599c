"""Philox 4x32-10 against the known answers of Random123 and against a straight-line version in Python integers."""

from __future__ import annotations

import pytest
import torch

from plr_kernels.stream_attention.keep_mask import attention_keep_mask, dropout_threshold
from plr_kernels.stream_attention.philox import philox, split_words

WORD = 2**32


def python_philox(counter, key):
    """The definition (Salmon et al. 2011) in unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right % WORD, (left >> 32) ^ d ^ m, left % WORD
        k, m = (k + 0x9E3779B9) % WORD, (m + 0xBB67AE85) % WORD
    return a, b, c, d


# kat_vectors of Random123, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD - 1,) * 4, (WORD - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(word.item() for word in words) == answer
    assert python_philox(counter, key) == answer


@pytest.mark.parametrize("value", [0, 5, -1, 2**32, 2**63 - 1, -(2**63), -5000000000])
def test_words_are_those_of_twos_complement(value):
    low, high = split_words(torch.tensor(value))
    assert (high.item() << 32 | low.item()) == value % 2**64


def python_keep(seed, dropout_p, sizes, b, h, m, part, entry):
    """The rule of docs/architecture.md for one entry."""
    _, heads, streams = sizes
    row = (b * heads + h) * streams + m
    words = python_philox((entry // 4, row % WORD, row // WORD, part), (seed % WORD, (seed >> 32) % WORD))
    return words[entry % 4] >= round(dropout_p * WORD)


@pytest.mark.parametrize("seed", [0, 1, -1, 0x123456789ABCDEF, -(2**63)])
def test_mask_follows_the_rule(seed):
    sizes = batch, heads, streams = 2, 3, 2
    prefix, suffix = 7, 5
    parts = attention_keep_mask(torch.tensor(seed), 0.4, batch, heads, streams, prefix, suffix)
    for part, (mask, entries) in enumerate(zip(parts, (prefix, suffix), strict=True)):
        assert mask.dtype == torch.bool
        assert mask.shape == (batch, heads, streams, entries)
        expected = [
            python_keep(seed, 0.4, sizes, b, h, m, part, entry)
            for b in range(batch)
            for h in range(heads)
            for m in range(streams)
            for entry in range(entries)
        ]
        assert mask.flatten().tolist() == expected


def test_mask_does_not_depend_on_padding():
    seed = torch.tensor(11)
    prefix, suffix = attention_keep_mask(seed, 0.5, 3, 2, 4, 19, 6)
    shorter_prefix, shorter_suffix = attention_keep_mask(seed, 0.5, 2, 2, 4, 10, 3)
    assert torch.equal(shorter_prefix, prefix[:2, ..., :10])
    assert torch.equal(shorter_suffix, suffix[:2, ..., :3])


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_share_kept(dropout_p):
    prefix, suffix = attention_keep_mask(torch.tensor(3), dropout_p, 8, 4, 8, 200, 200)
    for mask in (prefix, suffix):
        count = mask.numel()
        deviation = abs(mask.double().mean().item() - (1 - dropout_p))
        assert deviation < 5 * (dropout_p * (1 - dropout_p) / count) ** 0.5
    # Two independent masks agree at p² + (1 − p)²; neighbouring entries, rows and the two parts are such.
    agreement = dropout_p**2 + (1 - dropout_p) ** 2
    bound = 5 * (agreement * (1 - agreement) / prefix.numel()) ** 0.5 * 1.2
    pairs = [
        (prefix, suffix),
        (prefix[..., 1:], prefix[..., :-1]),
        (prefix[:, :, 1:], prefix[:, :, :-1]),
        (prefix[:, 1:], prefix[:, :-1]),
        (prefix[1:], prefix[:-1]),
        (prefix, attention_keep_mask(torch.tensor(4), dropout_p, 8, 4, 8, 200, 200)[0]),
        (prefix, attention_keep_mask(torch.tensor(3 + 2**32), dropout_p, 8, 4, 8, 200, 200)[0]),
    ]
    for first, second in pairs:
        assert abs((first == second).double().mean().item() - agreement) < bound


def test_threshold_ends():
    assert dropout_threshold(0.0) == 0
    assert dropout_threshold(0.5) == 2**31
    assert dropout_threshold(1 - 2**-40) == 2**32
