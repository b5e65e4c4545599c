"""Attention of reasoning streams to a shared prefix and to their own past."""

from plr_kernels.stream_attention.operator import stream_attention

__all__ = ["stream_attention"]
