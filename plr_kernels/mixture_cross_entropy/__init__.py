"""Cross-entropy of a mixture of item distributions, from states, log-weights and item table."""

from plr_kernels.mixture_cross_entropy.operator import mixture_cross_entropy

__all__ = ["mixture_cross_entropy"]
