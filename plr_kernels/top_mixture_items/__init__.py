"""The best items of each row under a mixture of item distributions."""

from plr_kernels.top_mixture_items.operator import top_mixture_items

__all__ = ["top_mixture_items"]
