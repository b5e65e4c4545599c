"""Item encoders: what an item's row of the [V, d] table is made of."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class ItemEncoder(nn.Module):
    """What turns the items into vectors of the encoder's width.

    Attributes:
        num_items: V; items are numbered 0..V-1, there is no padding row.
        cosine: whether an item's score is the cosine to its vector instead of the dot product.
    """

    num_items: int
    cosine: ClassVar[bool] = False

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients: computed once per step, for inputs and scores alike."""
        raise NotImplementedError


class IdItemEncoder(ItemEncoder):
    """One learned vector per item.

    Args:
        num_items: V.
        dim: width d.
    """

    def __init__(self, num_items: int, dim: int):
        super().__init__()
        self.num_items = num_items
        self.embedding = nn.Embedding(num_items, dim)

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients."""
        return self.embedding.weight
