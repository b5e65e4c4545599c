"""The rank of each row's target under a mixture of item distributions."""

from plr_kernels.target_mixture_rank.operator import target_mixture_rank

__all__ = ["target_mixture_rank"]
