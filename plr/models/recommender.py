"""What training, ranking and serving know of a model; `plr.Recommender.load` answers from raw ids by a trained one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.data import Batch, Share
from plr.models.collectives import total
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder, SharableItemEncoder
from plr.models.items.sharded import ShardedEmbedding
from plr.models.sampled_items import Candidates, ItemSampler, SampledItems, positive_power, starting_score
from plr.models.scoring import ItemScorer
from plr.models.sharded_items import ShardedItems
from plr.options import RecommenderOptions
from plr.systems import COSINE_TEMPERATURE
from plr_kernels.distributed import sharded_lookup

Losses = dict[str, Tensor]
INITIAL_STD = 0.02


class RecommenderModel(nn.Module):
    """An item encoder and a sequence encoder; subclasses add the training loss and the user embedding.

    What `scorer(batch)` scores are the rows of `candidates(item_table())`: by their dot product with
    `user_embedding(batch)`, unless a subclass has a scorer of its own.

    Args:
        items: the item encoder.
        encoder: the sequence encoder.
        options: the method's.

    Attributes:
        temperature: of the item softmax: logits are score / temperature.
        same_target_positives: whether a training batch holds, after its B rows, another row of the same target for
            each.
        epoch: the epoch being trained, from 0; training sets it before each.
        extra_metrics: what the last call of `losses` measured beside its terms, by name, for the logs.
        reference: a frozen model that training compares with; its rows are those whose targets it ranks well.
        sampler: where the loss is on sampled items, what samples them; training sets it.
    """

    same_target_positives: bool = False
    epoch: int = 0
    reference: RecommenderModel | None = None
    sampler: ItemSampler | None = None

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: RecommenderOptions):
        super().__init__()
        self.items = items
        self.encoder = encoder
        self.options = options
        default = COSINE_TEMPERATURE if items.cosine else 1.0
        self.temperature = default if options.temperature is None else options.temperature
        self.extra_metrics: dict[str, Tensor] = {}

    def losses(self, batch: Batch) -> Losses:
        """Return the training loss as named, weighted, signed scalars; their sum is minimised.

        With `batch.share` the rows are some of a batch, the terms those of the whole one (`plr.models.collectives`).
        """
        raise NotImplementedError

    def target_counts(self, batch: Batch) -> tuple[int | Tensor, int | Tensor]:
        """Return how many targets the means of `losses(batch)`, called just before, are over: numbers or scalars.

        Those of these rows, and those of the whole batch, of which a process may have a share.
        """
        own = len(batch.each_target)
        if batch.share is None:
            return own, own
        return 0 if batch.share.idle else own, batch.share.targets

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the embedding [B, d] of the user behind each history, as `queries` makes it.

        table is `item_table()` where the caller already has it (ranking computes it once for all batches).
        """
        raise NotImplementedError

    def scorer(self, batch: Batch, table: Tensor | None = None) -> ItemScorer:
        """Return what ranks the `candidates` for each history; table as in `user_embedding`."""
        return ItemScorer(self.user_embedding(batch, table))

    def item_table(self) -> Tensor:
        """Return the item vectors [V, d] that histories are made of."""
        return self.items.table()

    def step_items(self, batch: Batch) -> tuple[Batch, Tensor, Candidates]:
        """Return what a training step computes with: its batch, its item vectors, and what its targets are told from.

        With a loss over all items these are the batch, the table and its candidates. Else the vectors are those of the
        items alone that the batch and its sampled items name, [U, d], and the batch numbers these. Where processes
        share the table all of them call it together.

        Raises:
            RuntimeError: the loss samples items, and there is no sampler.
        """
        options = self.options
        if options.loss == "softmax":
            if self.items.part is not None:
                return self.shared_items(batch)
            table = self.item_table()
            return batch, table, self.candidates(table)
        if self.sampler is None:
            raise RuntimeError(f"loss {options.loss!r} needs the model's sampler: set it to an ItemSampler")
        share = batch.share
        drawn, log_q = self.sampler.draw(
            batch.each_target if share is None else share.whole.each_target.to(batch.item_ids.device)
        )
        batch, sampled, named = numbered_anew(batch, drawn)
        table = self.items.rows(named)
        power = positive_power(options, len(drawn), self.items.num_items)
        kind = "softmax" if options.loss == "sampled_softmax" else "bce"
        offset = starting_score(power, len(drawn)) if kind == "bce" else 0.0
        return batch, table, SampledItems(self.candidates(table), sampled, log_q, kind, power, offset)

    def shared_items(self, batch: Batch, held: Tensor | None = None) -> tuple[Batch, Tensor, ShardedItems]:
        """Return what `step_items` does over all items, of which each process holds some; all call it together.

        The vectors are those of the items of the batch's histories, which alone are numbered anew.

        Args:
            batch: this process's.
            held: the `held_vectors` of its items, where it already has them.
        """
        assert isinstance(self.items, SharableItemEncoder)
        held, shard = self.items.held_vectors() if held is None else held, self.items.shard
        named, numbers = torch.unique(filled_up(batch), return_inverse=True)
        candidates = ShardedItems(self.candidates(held), shard)
        return replace(batch, item_ids=numbers), sharded_lookup(held, named, shard), candidates

    def own_rows(self) -> tuple[str, ...]:
        """Return the names of the parameters whose row v is item v's own."""
        return tuple(f"items.{name}" for name in self.items.own_rows())

    def shared_rows(self) -> tuple[str, ...]:
        """Return the names of the parameters of which this process has some rows, and others of its run the rest."""
        return () if self.items.part is None else self.own_rows()

    def candidates(self, table: Tensor) -> Tensor:
        """Return the vectors [V, d] that scores are taken against: those of the table, or their unit vectors."""
        return functional.normalize(table, dim=-1) if self.items.cosine else table

    def queries(self, states: Tensor) -> Tensor:
        """Return the states [..., d] as scores take them: as they are, or as unit vectors."""
        return functional.normalize(states, dim=-1) if self.items.cosine else states

    def embed(self, table: Tensor, item_ids: Tensor) -> Tensor:
        """Look item_ids [B, L] up in the table [V, d] of this step -> [B, L, d]."""
        return functional.embedding(item_ids, table)

    def divergence_sample(
        self, histories: Tensor, share: Share | None, *, in_rows: bool = False
    ) -> tuple[Tensor, float | None]:
        """Return what of [n, ...] a mean divergence is estimated on: all, or `divergence_share` of it, at random.

        Args:
            histories: of this process.
            share: which of the batch's they are; None where they are all.
            in_rows: whether they are in the order of the rows, and not of `batch.counted`.

        Returns:
            The sample, and what its mean counts in that of all processes' (`mean_of_samples`); None without others. A
            process of whose histories none were drawn has one that counts 0.
        """
        portion, device = self.options.divergence_share, histories.device
        histories_of_all = len(histories) if share is None else share.targets  # N
        wanted, drawn = histories_of_all, None
        if portion != 1:
            wanted = max(1, round(portion * histories_of_all))
            generator = None if share is None else share.generator(device)
            drawn = torch.randperm(histories_of_all, generator=generator, device=device)[:wanted]
        if share is None:
            return histories if drawn is None else histories[drawn], None
        if share.idle:
            return histories[:1], 0.0
        if drawn is not None:
            own = torch.isin(share.numbers(in_rows=in_rows).to(device), drawn).nonzero()[:, 0]
            if not len(own):
                return histories[:1], 0.0
            histories = histories[own]
        return histories, len(histories) / wanted

    def mean_of_samples(self, mean: Tensor, weight: float | None) -> Tensor:
        """Return the mean over all processes' samples, of each one's mean and what it counts."""
        return mean if weight is None else total(mean * weight)

    def initialize(self, std: float = INITIAL_STD) -> None:
        """Draw all weights from N(0, std²), biases 0 and LayerNorm at identity, in the order of registration."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, ShardedEmbedding):
                module.draw(std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Score every item for each history, [B, V]: for small sets; ranking and serving work in blocks instead."""
        table = self.item_table()
        return self.scorer(batch, table).scores(self.candidates(table))


def numbered_anew(batch: Batch, others: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """Number the items of a batch, and others [K], from 0 on, in their order.

    Returns:
        The batch and the others in the new numbers, and the items [U] that they stand for, ascending.
    """
    item_ids = filled_up(batch)
    named, numbers = torch.unique(
        torch.cat([item_ids.flatten(), batch.each_target, others]), return_inverse=True
    )
    of_items, of_targets, of_others = numbers.split([item_ids.numel(), len(batch.each_target), len(others)])
    if batch.counted is None:
        batch = replace(batch, item_ids=of_items.view_as(item_ids), targets=of_targets)
    else:
        counted = replace(batch.counted, targets=of_targets)
        batch = replace(batch, item_ids=of_items.view_as(item_ids), counted=counted)
    return batch, of_others, named


def filled_up(batch: Batch) -> Tensor:
    """Return the items [B, L], rows filled up by an item of the batch: none is named that has no gradient."""
    places = torch.arange(batch.item_ids.shape[1], device=batch.item_ids.device)
    return torch.where(places < batch.lengths[:, None], batch.item_ids, batch.item_ids[:1, :1])
