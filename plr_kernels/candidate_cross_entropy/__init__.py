"""Losses of states over lists of candidate items instead of all."""

from plr_kernels.candidate_cross_entropy.operator import candidate_cross_entropy, candidate_mixture_cross_entropy

__all__ = ["candidate_cross_entropy", "candidate_mixture_cross_entropy"]
