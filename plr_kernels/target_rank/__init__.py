"""The rank of each state's target among all items."""

from plr_kernels.target_rank.operator import target_rank

__all__ = ["target_rank"]
