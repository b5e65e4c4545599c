"""Mean Kullback-Leibler divergence between the item distributions of a group's states."""

from plr_kernels.pairwise_kl.operator import pairwise_kl

__all__ = ["pairwise_kl"]
