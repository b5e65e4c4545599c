"""Cross-entropy of mixtures in two views, and the divergence of a stream of each between them."""

from plr_kernels.consistent_mixture_cross_entropy.operator import consistent_mixture_cross_entropy

__all__ = ["consistent_mixture_cross_entropy"]
