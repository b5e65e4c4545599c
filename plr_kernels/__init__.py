"""Operators for latent-reasoning recommenders: drop-in functions and layers for any PyTorch model."""

from plr_kernels.candidate_cross_entropy import candidate_cross_entropy, candidate_mixture_cross_entropy
from plr_kernels.consistent_mixture_cross_entropy import consistent_mixture_cross_entropy
from plr_kernels.dispatch.backend import use_backend
from plr_kernels.info_nce import info_nce
from plr_kernels.layers import (
    CandidateCrossEntropy,
    CandidateMixtureCrossEntropy,
    ConsistentMixtureCrossEntropy,
    InfoNCE,
    LinearCrossEntropy,
    MixtureCrossEntropy,
    PairwiseKL,
    StreamAttention,
)
from plr_kernels.linear_cross_entropy import linear_cross_entropy
from plr_kernels.mixture_cross_entropy import mixture_cross_entropy
from plr_kernels.pairwise_kl import pairwise_kl
from plr_kernels.stream_attention import stream_attention
from plr_kernels.target_mixture_rank import target_mixture_rank
from plr_kernels.target_rank import target_rank
from plr_kernels.top_items import top_items
from plr_kernels.top_mixture_items import top_mixture_items

# isort: split
from plr_kernels import flops  # noqa: F401 -- registers formulas for the operators above

__all__ = [
    "CandidateCrossEntropy",
    "CandidateMixtureCrossEntropy",
    "ConsistentMixtureCrossEntropy",
    "InfoNCE",
    "LinearCrossEntropy",
    "MixtureCrossEntropy",
    "PairwiseKL",
    "StreamAttention",
    "candidate_cross_entropy",
    "candidate_mixture_cross_entropy",
    "consistent_mixture_cross_entropy",
    "info_nce",
    "linear_cross_entropy",
    "mixture_cross_entropy",
    "pairwise_kl",
    "stream_attention",
    "target_mixture_rank",
    "target_rank",
    "top_items",
    "top_mixture_items",
    "use_backend",
]
