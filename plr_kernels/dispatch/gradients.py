"""Gradients that backward passes return: memory for them, and None in the place of those that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def new_gradients(tensors: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor, ...]:
    """Uninitialised contiguous memory for the gradient of each tensor, an empty tensor for one that is not wanted."""
    return tuple(tensor.new_empty(tensor.shape if want else (0,)) for tensor, want in zip(tensors, wanted, strict=True))


def only_wanted(gradients: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor | None, ...]:
    """The gradients, with None for each that is not wanted."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
