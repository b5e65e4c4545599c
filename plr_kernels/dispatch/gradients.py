"""Gradients that backward passes return: memory for them, and None in the place of those that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def new_gradient(tensor: Tensor, wanted: bool) -> Tensor:
    """Uninitialised contiguous memory for the gradient of `tensor`, or an empty tensor where it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))


def new_gradients(tensors: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor, ...]:
    """`new_gradient` of each tensor."""
    return tuple(new_gradient(tensor, want) for tensor, want in zip(tensors, wanted, strict=True))


def only_wanted(gradients: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor | None, ...]:
    """The gradients, with None for each that is not wanted."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
