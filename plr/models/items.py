"""Item encoders: what an item's row of the [V, d] table is made of."""

from __future__ import annotations

from torch import Tensor, nn


class IdItemEncoder(nn.Module):
    """One learned vector per item.

    An item encoder has `num_items` and `table() -> [V, d]`, which a step computes once and uses for the inputs, the
    losses and the ranking alike.

    Args:
        num_items: V; items are numbered 0..V-1, there is no padding row.
        dim: width d.
    """

    def __init__(self, num_items: int, dim: int):
        super().__init__()
        self.num_items = num_items
        self.embedding = nn.Embedding(num_items, dim)

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients."""
        return self.embedding.weight
