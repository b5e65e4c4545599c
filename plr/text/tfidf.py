"""TF-IDF and truncated SVD (latent semantic analysis): text vectors without a language model."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TfidfSvd", "fit_tfidf", "words"]

_LEAST_TEXTS = 2  # a word of one text alone says nothing about two
_MOST_WORDS = 50_000
_EXTRA = 32  # directions beyond those wanted, which sharpen the randomised SVD
_ITERATIONS = 2
_NEGLIGIBLE = 1e-4  # a singular value below this share of the largest is rounding


@dataclass(frozen=True, eq=False)
class TfidfSvd:
    """A fitted encoder.

    Attributes:
        vocabulary: the words, sorted.
        idf: float64 [words].
        components: float32 [words, W], orthonormal columns, by falling singular value.
        marks: whether marks are of the words (see `words`); earlier vocabularies were cut there.
    """

    vocabulary: list[str]
    idf: Tensor
    components: Tensor
    marks: bool = True

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit vectors float32 [N, W] and whether a text has any known word, bool [N]; zeros where not.

        A vector is a function of its text alone, to the bit, whatever texts stand beside it.
        """
        index = {word: number for number, word in enumerate(self.vocabulary)}
        counts = [Counter(word for word in words(text, marks=self.marks) if word in index) for text in texts]
        numbers, weights, offsets = _weighted(counts, index, self.idf)
        vectors = functional.embedding_bag(
            numbers,
            self.components,
            offsets,
            mode="sum",
            per_sample_weights=weights.float(),
            include_last_offset=True,
        )
        vectors = functional.normalize(vectors, dim=1)
        return vectors, vectors.any(dim=1)


def fit_tfidf(texts: Sequence[str], width: int, seed: int = 0) -> TfidfSvd:
    """Fit to the texts.

    The weight of word w in text t is (1 + ln n_wt) · idf_w, rows scaled to length 1, with
    idf_w = ln((1 + N) / (1 + N_w)) + 1, where N_w of N texts hold w. Components are the right singular vectors of that
    matrix, found by a randomised SVD (Halko et al. 2011), each with its largest entry positive.

    Args:
        texts: N texts.
        width: how many components; fewer where the matrix has a smaller rank.
        seed: of the randomised SVD.

    Raises:
        ValueError: no word occurs in two texts.
    """
    counts = [Counter(words(text)) for text in texts]
    texts_with = Counter(word for each in counts for word in each)
    common = [word for word, count in texts_with.items() if count >= _LEAST_TEXTS]
    vocabulary = sorted(sorted(common, key=lambda word: (-texts_with[word], word))[:_MOST_WORDS])
    if not vocabulary:
        raise ValueError(f"no word occurs in {_LEAST_TEXTS} of the {len(texts)} texts")
    index = {word: number for number, word in enumerate(vocabulary)}
    holding = torch.tensor([texts_with[word] for word in vocabulary], dtype=torch.float64)
    idf = torch.log((1 + len(texts)) / (1 + holding)) + 1

    known = [Counter({word: n for word, n in each.items() if word in index}) for each in counts]
    numbers, weights, offsets = _weighted(known, index, idf)
    rows = torch.repeat_interleave(torch.arange(len(texts)), offsets.diff())
    # float32: the directions are random where singular values are close, and twice as fast to find.
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, numbers]), weights.float(), (len(texts), len(vocabulary)), check_invariants=True
    )
    most = min(matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, vectors = torch.svd_lowrank(matrix, q=min(width + _EXTRA, most), niter=_ITERATIONS)
    rank = int((values > _NEGLIGIBLE * values[0]).sum())
    components = vectors[:, : min(width, rank)]
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    return TfidfSvd(vocabulary, idf, (components * largest.sign()).contiguous())


def words(text: str, *, marks: bool = True) -> list[str]:
    """Return the words of a text: runs of letters, digits and underscores, compatible forms unified, lower case.

    Args:
        text: any.
        marks: count the marks and joiners behind a letter as of its word: the vowel signs of Indic scripts, accents
            that no single character has. Without, words end there, and many of these scripts become one.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall(_word() if marks and not text.isascii() else r"\w+", text)


@cache
def _word() -> re.Pattern[str]:
    """A word: Python's `re` knows no class of marks."""
    found = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")]
    joiners = "\u200c\u200d"  # they shape letters, and do not part words
    return re.compile(rf"\w+(?:[{''.join(found)}{joiners}]+\w*)*")


def _weighted(
    counts: Sequence[Counter[str]], index: dict[str, int], idf: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return word numbers int64 [Z], weights float64 [Z] and offsets int64 [N + 1] of the texts with these words."""
    ordered = [sorted((index[word], count) for word, count in each.items()) for each in counts]
    lengths = torch.tensor([len(each) for each in ordered], dtype=torch.int64)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    numbers = torch.tensor([number for each in ordered for number, _ in each], dtype=torch.int64)
    occurrences = torch.tensor([count for each in ordered for _, count in each], dtype=torch.float64)
    weights = (1 + occurrences.log()) * idf[numbers]
    rows = torch.repeat_interleave(torch.arange(len(ordered)), lengths)
    squares = torch.zeros(len(ordered), dtype=torch.float64).index_add_(0, rows, weights.square())
    return numbers, weights / squares.sqrt()[rows], offsets
