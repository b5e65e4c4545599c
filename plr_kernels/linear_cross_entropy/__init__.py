"""Cross-entropy over all items, from states and item table."""

from plr_kernels.linear_cross_entropy.operator import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
