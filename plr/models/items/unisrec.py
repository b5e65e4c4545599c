"""UniSRec's item encoder: text vectors through a mixture of whitening experts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.errors import ConfigError
from plr.items import ItemData, ItemText
from plr.models.items.encoders import ItemEncoder, SharableItemEncoder
from plr.models.items.sharded import ItemPart, item_embedding
from plr.models.layers.dropout import Dropout
from plr.options import UniSRecOptions


class TextItemEncoder(SharableItemEncoder):
    """Item vectors from text, scored by cosine (UniSRec, Hou et al. 2022).

        table[v] = adaptor(x_v)  [+ E_id[v] in transductive mode],

    where x_v is the item's text vector. All items without a text share one learned vector in place of the adaptor's
    output: zeros would be a text vector like any other.

    Args:
        text: the text vectors of all items.
        dim: width d.
        options: mode "transductive" adds an id embedding, on input and output alike; without it an item is its text and
            nothing else.
        part: which of the items this process holds; None: all.
    """

    cosine: ClassVar[bool] = True
    vectors: Tensor
    present: Tensor

    def __init__(self, text: ItemText, dim: int, options: UniSRecOptions, part: ItemPart | None = None):
        num_items, width = text.vectors.shape
        super().__init__(num_items, part)
        self.adaptor = MixtureOfExpertsAdaptor(width, dim, experts=options.experts, dropout=options.adaptor_dropout)
        self.missing = nn.Embedding(1, dim)
        transductive = options.unisrec_mode == "transductive"
        self.embedding = item_embedding(num_items, dim, part) if transductive else None
        # Not in the weights' file: they are the item data's, which the run's folder holds once.
        self.register_buffer("vectors", text.vectors[self.held], persistent=False)
        self.register_buffer("present", text.present[self.held], persistent=False)

    def held_vectors(self) -> Tensor:
        """Return the vectors [held, d], with gradients; in training with dropout and noise of the adaptor."""
        noise = self._noise()
        noise = None if noise is None else noise[self.held]
        made = torch.where(self.present[:, None], self.adaptor(self.vectors, noise), self.missing.weight)
        return made if self.embedding is None else made + self.embedding.weight

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` of the table: no other text is read."""
        # Noise for all items, so that one has the same in all processes, whichever others each of them names.
        noise = self._noise()
        noise = None if noise is None else noise[ids]
        rows = torch.where(self.present[ids, None], self.adaptor(self.vectors[ids], noise), self.missing.weight)
        return rows if self.embedding is None else rows + self.embedding(ids)

    def _noise(self) -> Tensor | None:
        """Return n [V, E] of a training step."""
        if not self.training:
            return None
        generator = None if self.share is None else self.share.generator(self.vectors.device)
        return self.adaptor.draw(self.num_items, self.vectors, generator)

    def own_rows(self) -> tuple[str, ...]:
        """Return the id embedding's, where there is one."""
        return () if self.embedding is None else super().own_rows()


def text_items(
    data: ItemData, dim: int, options: UniSRecOptions, part: ItemPart | None = None
) -> ItemEncoder:
    """Return vectors [V, dim] of the items' texts.

    Raises:
        ConfigError: there are no text vectors.
    """
    if data.text is None:
        raise ConfigError("backbone 'unisrec' needs the items' text vectors: set text_vectors")
    return TextItemEncoder(data.text, dim, options, part)


class MixtureOfExpertsAdaptor(nn.Module):
    """E parametric whitenings of a text vector, mixed by a gate over all of them:

        adaptor(x) = Σ_e g_e · W_e (dropout(x) − b_e),      g = softmax(x W_g + noise),
        noise = n · (softplus(x W_n) + 0.01),  n ~ N(0, 1), in training only.

    Every expert has a dropout mask of its own. W_g, W_n and b start at zero, so that all experts start with an equal
    share; W_e from N(0, 0.02²).

    Args:
        width: of the text vectors.
        dim: width d of the result.
        experts: E.
        dropout: of each expert's input.
    """

    def __init__(self, width: int, dim: int, *, experts: int, dropout: float):
        super().__init__()
        self.whitening = nn.ModuleList(ParametricWhitening(width, dim, dropout) for _ in range(experts))
        # Parameters, not linear layers: `RecommenderModel.initialize` draws those.
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))

    def forward(self, vectors: Tensor, noise: Tensor | None = None) -> Tensor:
        """[V, width] -> [V, d]; noise: n [V, E], in training only, by default drawn from torch's global generator."""
        gates = self.gates(vectors, noise)
        return sum(gates[:, e, None] * whitening(vectors) for e, whitening in enumerate(self.whitening))

    def draw(self, items: int, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return n [items, E] for vectors like [.., width], from the generator, by default torch's global one."""
        shape = items, self.gate.shape[1]
        dtype = torch.result_type(vectors, self.gate)
        return torch.randn(shape, generator=generator, dtype=dtype, device=vectors.device)

    def gates(self, vectors: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return g [V, E] for vectors [V, width], in training with noise n [V, E]."""
        logits = vectors @ self.gate
        if self.training:
            spread = functional.softplus(vectors @ self.noise) + 0.01
            logits = logits + (self.draw(len(vectors), vectors) if noise is None else noise) * spread
        return torch.softmax(logits, dim=-1)


class ParametricWhitening(nn.Module):
    """W (dropout(x) − b): a learned shift and linear map, to make the crowded space of text vectors more isotropic."""

    def __init__(self, width: int, dim: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.shift = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, dim, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[V, width] -> [V, d]."""
        # W x − W b: unlike W (x − b) it needs no gradient of size [V, width].
        return self.linear(self.dropout(vectors)) - self.linear(self.shift)
