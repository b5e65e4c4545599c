"""The best items of each state."""

from plr_kernels.top_items.operator import top_items

__all__ = ["top_items"]
