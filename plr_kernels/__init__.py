"""Operators for latent-reasoning recommenders: drop-in functions and layers for any PyTorch model."""

from plr_kernels.dispatch.backend import use_backend
from plr_kernels.info_nce import info_nce
from plr_kernels.layers import InfoNCE, LinearCrossEntropy, MixtureCrossEntropy, PairwiseKL, StreamAttention
from plr_kernels.linear_cross_entropy import linear_cross_entropy
from plr_kernels.mixture_cross_entropy import mixture_cross_entropy
from plr_kernels.pairwise_kl import pairwise_kl
from plr_kernels.stream_attention import stream_attention
from plr_kernels.top_items import top_items

# isort: split
from plr_kernels import flops  # noqa: F401 -- registers formulas for the operators above

__all__ = [
    "InfoNCE",
    "LinearCrossEntropy",
    "MixtureCrossEntropy",
    "PairwiseKL",
    "StreamAttention",
    "info_nce",
    "linear_cross_entropy",
    "mixture_cross_entropy",
    "pairwise_kl",
    "stream_attention",
    "top_items",
    "use_backend",
]
