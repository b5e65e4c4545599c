"""Symmetric in-batch contrastive loss between two views."""

from plr_kernels.info_nce.operator import info_nce

__all__ = ["info_nce"]
