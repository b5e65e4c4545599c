"""Parallel Latent Reasoning (arXiv 2601.03153) on any sequence encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from plr.data import Batch, CountedTargets, Share
from plr.models.collectives import batch_mean, gather_histories, nothing, total
from plr.models.consistency import next_item_and_consistency, of_histories, takes_one_sweep
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.layers.linear import Linear
from plr.models.methods.history_buckets import in_buckets
from plr.models.methods.reasoning import Histories, Reasoning, encode_histories, reason
from plr.models.recommender import INITIAL_STD, Losses, RecommenderModel
from plr.models.sampled_items import Candidates, linear_cross_entropy, mixture_cross_entropy, pairwise_kl
from plr.models.scoring import ItemScorer
from plr.options import PLROptions
from plr_kernels import info_nce


@dataclass(frozen=True)
class ParallelReasoning:
    """Everything PLR computes about N histories. C is M, or M + 1 where h_0 is a component of the mixture.

    Attributes:
        fast: h_0 [N, d], the encoder's state of the last item.
        states: h_{t,m} as [N, M, T, d]; without reasoning the streams' maps of h_0, [N, M, 1, d].
        streams: [N, C, d], what is mixed: z_m, the mean over steps (Eq. 6) or the last one; h_0 as `fast_state` says.
        gate_scores: [N, C], of which the softmax is the weights; zeros without the gate.
        attention: attention[t][layer] [N, H, M, P + t + 1], or None unless asked for.
    """

    fast: Tensor
    states: Tensor
    streams: Tensor
    gate_scores: Tensor
    attention: list[list[Tensor]] | None = None

    @property
    def gates(self) -> Tensor:
        """The weights g [N, C], summing to 1."""
        return torch.softmax(self.gate_scores, dim=-1)

    @property
    def log_gates(self) -> Tensor:
        """Their logarithms [N, C]."""
        return torch.log_softmax(self.gate_scores, dim=-1)

    @property
    def slow(self) -> Tensor:
        """z_rea [N, d], the mixture of states (Eq. 9)."""
        return (self.gates[:, :, None] * self.streams).sum(dim=1)

    @property
    def final(self) -> Tensor:
        """z_final = h_0 + z_rea [N, d] (Eq. 10): what inference ranks with, as printed."""
        return self.fast + self.slow


class PLRRecommender(RecommenderModel):
    """M reasoning streams, opened by trigger tokens, over the shared prefix, mixed by a gate.

    With `mixture` "distributions" stream m predicts by itself, p_m = softmax(z_m·E / τ), and a history is trained on
    and ranked by their mixture: it minimises −log Σ_m g_m p_m(y), plus the terms below whose weights are not 0. The
    paper's theorems (4.1, 4.6) are about this mixture; a stream learns most from the rows that it explains best.

    With "states" the streams' states are mixed, z_rea = Σ_m g_m z_m (Eq. 9), and it minimises, as printed,
    L = L_NIP + w·L_RCL − λ·L_KL  (Eq. 11). The paper prints +λ·L_KL, which would pull the streams together against its
    own text; the divergence is meant to grow, hence the minus. L_KL has no upper bound, and descending −λ·L_KL alone
    would never end: a batch whose L_KL exceeds `kl_limit` gives no gradient for it.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        options: M is `streams`, T `steps`, λ `kl_weight`, w `contrastive_weight`, τ of Eq. 8 `contrastive_temperature`.
            A second dropout view is computed where `contrastive_weight` or `consistency_weight` is not 0. Without
            `reasoning` stream m is W_m h_0 + b_m.
    """

    options: PLROptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: PLROptions):
        super().__init__(items, encoder, options)
        dim = encoder.options.dim
        assert options.steps is not None  # set when the options are made
        self.steps = options.steps
        if options.reasoning:
            self.trigger = nn.Embedding(options.streams, dim)
            self.step_embedding = nn.Embedding(self.steps, dim)
        else:
            self.heads = Linear(dim, options.streams * dim)
        self.gate = Linear(dim, options.streams) if options.gate else None
        self.fast_gate = Linear(dim, 1) if options.gate and options.fast_state == "component" else None
        self.initialize()
        with torch.no_grad():  # scales: other weights and later draws stay the same
            if options.reasoning:
                assert options.trigger_std is not None  # set when the options are made
                self.trigger.weight.mul_(options.trigger_std / INITIAL_STD)
            else:
                self.heads.weight.mul_(dim**-0.5 / INITIAL_STD)  # streams as large as h_0

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "consistency", "contrastive", "diversity", "load"}; without those whose weight is 0.

        The two dropout views are one batch of 2B rows. With consistency (R-Drop) both predict the next item; else
        prediction and divergence use the first B. With sequence rows all means are over the N targets that count, and
        the contrastive loss compares histories with those of the same number in other rows.
        """
        options = self.options
        batch, table, candidates = self.step_items(batch)
        targets = batch.each_target
        rows = targets.shape[0]  # N
        views = 2 if options.contrastive_weight or options.consistency_weight else 1
        outcome = self._run(table, batch.item_ids, batch.lengths, batch.counted, views=views)

        if options.mixes_distributions:
            gates = outcome.gates.detach()
            self.extra_metrics = {
                "gate_entropy": torch.special.entr(gates).sum(dim=1).mean(),
                "load_entropy": torch.special.entr(batch_mean(gates, batch.share, views)).sum(),
            }
        if options.consistency_weight:
            losses = self._consistent(outcome, candidates, targets, options.consistency_weight, batch.share)
        else:
            losses = {"next_item": self._next_item(outcome, rows, candidates, targets)}
        if options.contrastive_weight:
            grouped = outcome.states.flatten(1, 2).transpose(0, 1)  # [M·T, 2N, d]
            losses["contrastive"] = options.contrastive_weight * self._contrastive(
                grouped[:, :rows], grouped[:, rows:], batch
            )
        if options.kl_weight:
            sample, weight = self.divergence_sample(outcome.states[:rows].flatten(1, 2), batch.share)  # [N, M·T, d]
            divergence = pairwise_kl(self.queries(sample), candidates, temperature=self.temperature)
            divergence = self.mean_of_samples(divergence, weight)
            if options.kl_limit:
                divergence = divergence.clamp(max=options.kl_limit)
            losses["diversity"] = -options.kl_weight * divergence
        if options.load_weight:
            load = batch_mean(outcome.gates[:rows], batch.share)  # [C]
            losses["load"] = options.load_weight * (math.log(len(load)) - torch.special.entr(load).sum())
        return losses

    def _next_item(self, outcome: ParallelReasoning, rows: int, candidates: Candidates, targets: Tensor) -> Tensor:
        """The cross-entropy of the first rows of the outcome."""
        if not self.options.mixes_distributions:
            queries = self.queries(outcome.slow[:rows])
            return linear_cross_entropy(queries, candidates, targets, temperature=self.temperature)
        queries, log_gates = self.queries(outcome.streams[:rows]), outcome.log_gates[:rows]
        return mixture_cross_entropy(queries, log_gates, candidates, targets, temperature=self.temperature)

    def _consistent(
        self, outcome: ParallelReasoning, candidates: Candidates, targets: Tensor, weight: float, share: Share | None
    ) -> Losses:
        """{"next_item", "consistency"} of two views of N histories, the N after the N."""
        mixes = self.options.mixes_distributions
        drawn = self._drawn(outcome, share) if mixes else None
        if takes_one_sweep(self.options, candidates, share):
            assert isinstance(candidates, Tensor)
            return next_item_and_consistency(
                self.queries(outcome.streams if mixes else outcome.slow),
                candidates,
                targets,
                weight=weight,
                temperature=self.temperature,
                log_weights=outcome.log_gates if mixes else None,
                drawn=drawn,
            )
        next_item = self._next_item(outcome, 2 * len(targets), candidates, targets.repeat(2))
        states = outcome.slow
        if drawn is not None:
            states = outcome.streams.take_along_dim(drawn.repeat(2)[:, None, None], dim=1)[:, 0]  # [2N, d]
        sample, counts = self.divergence_sample(of_histories(states), share)
        divergence = pairwise_kl(self.queries(sample), candidates, temperature=self.temperature)
        return {"next_item": next_item, "consistency": weight * self.mean_of_samples(divergence, counts)}

    def _drawn(self, outcome: ParallelReasoning, share: Share | None) -> Tensor:
        """Which stream of each of N histories consistency draws together in its two views, int64 [N].

        It is drawn by the views' mean gate ḡ: the mean over histories then estimates Σ_m ḡ_m KL_m without bias, which
        bounds the divergence of the mixtures from above where both views have one gate. Were all streams to count
        alike, one that the gate neglects would only learn to be constant, and the gate would end with one stream.
        """
        gates = outcome.gates.detach().unflatten(0, (2, -1)).mean(dim=0)  # [N, C]
        # As torch.multinomial draws one of each row, but from random numbers of all processes' histories.
        waits = gates.new_empty(len(gates) if share is None else share.targets, gates.shape[1])
        waits.exponential_(generator=None if share is None else share.generator(gates.device))
        if share is not None:
            waits = waits[: len(gates)] if share.idle else waits[share.numbers().to(gates.device)]
        return (gates / waits).argmax(dim=1)

    def _contrastive(self, view1: Tensor, view2: Tensor, batch: Batch) -> Tensor:
        """Eq. 8 of views [G, n, d] of the histories, whose negatives may be other processes'."""
        share, temperature = batch.share, self.options.contrastive_temperature
        if share is not None:
            views = gather_histories(torch.cat([view1, view2]).transpose(0, 1), share)  # [N, 2G, d]
            view1, view2 = views.transpose(0, 1).chunk(2)
        if batch.counted is None:
            sizes: tuple[int, ...] = (view1.shape[1],)
        else:
            sizes = batch.counted.sizes if share is None else share.group_sizes(batch)
        labels = None
        if self.options.contrastive_negatives == "others":
            labels = _labels(batch if share is None else share.whole).to(view1.device)
        return _contrast(view1, view2, labels, sizes, temperature, share)

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return what one inner product ranks by, [B, d]: z_final (Eq. 10), or z_rea where h_0 is in it or left out.

        Raises:
            RuntimeError: the model mixes distributions, whose ranking is no inner product; take `scorer`.
        """
        if self.options.mixes_distributions:
            raise RuntimeError("a mixture of distributions has no single embedding of a history; rank with scorer()")
        table = self.item_table() if table is None else table
        outcome = self._run(table, batch.item_ids, batch.lengths)
        return self.queries(outcome.final if self.options.fast_state == "ranking" else outcome.slow)

    def scorer(self, batch: Batch, table: Tensor | None = None) -> ItemScorer:
        """Return what ranks the candidates: the mixture of the streams' distributions, or of their states."""
        if not self.options.mixes_distributions:
            return super().scorer(batch, table)
        table = self.item_table() if table is None else table
        outcome = self._run(table, batch.item_ids, batch.lengths)
        return ItemScorer(self.queries(outcome.streams), outcome.log_gates, self.temperature)

    def run(self, batch: Batch, *, with_attention: bool = False) -> ParallelReasoning:
        """Encode and reason; return states, gates and, if asked for, attention weights."""
        return self._run(self.item_table(), batch.item_ids, batch.lengths, with_attention=with_attention)

    def gate_scores(self, fast: Tensor) -> Tensor:
        """Return W_g h_0 + b_g [N, C] for h_0 [N, d], whose softmax is Eq. 9's gate; zeros without the gate."""
        if self.gate is None:
            components = self.options.streams + (self.options.fast_state == "component")
            return fast.new_zeros(fast.shape[0], components)
        scores = self.gate(fast)
        return scores if self.fast_gate is None else torch.cat([scores, self.fast_gate(fast)], dim=1)

    def _run(
        self,
        table: Tensor,
        item_ids: Tensor,
        lengths: Tensor,
        counted: CountedTargets | None = None,
        *,
        views: int = 1,
        with_attention: bool = False,
    ) -> ParallelReasoning:
        """Encode the N histories of the rows, `views` times, and reason."""
        attention = None

        def encoded_and_reasoned(
            item_ids: Tensor, lengths: Tensor, counted: CountedTargets | None, rows: Tensor | None
        ) -> tuple[Tensor, ...]:
            nonlocal attention
            histories = encode_histories(self.encoder, self.embed(table, item_ids), lengths, counted)
            if not self.options.reasoning:
                return (histories.fast,)
            reasoning = self.reason(histories, with_attention=with_attention)
            attention = reasoning.attention
            return histories.fast, reasoning.states

        fast, *reasoned = in_buckets(item_ids, lengths, counted, encoded_and_reasoned, views)  # [views·N, d]
        # [views·N, M, T, d]
        states = reasoned[0] if reasoned else self.heads(fast).unflatten(1, (self.options.streams, 1, -1))
        return ParallelReasoning(
            fast=fast,
            states=states,
            streams=self.pooled(states, fast),
            gate_scores=self.gate_scores(fast),
            attention=attention,
        )

    def pooled(self, states: Tensor, fast: Tensor) -> Tensor:
        """Return what is mixed [N, C, d] where streams took the steps of states [N, M, T, d] from fast, h_0 [N, d]."""
        streams = states.mean(dim=2) if self.options.pooling == "mean" else states[:, :, -1]  # [N, M, d]
        if self.options.fast_state == "added":
            return streams + fast[:, None]
        if self.options.fast_state == "component":
            return torch.cat([streams, fast[:, None]], dim=1)
        return streams

    def reason(self, histories: Histories, *, with_attention: bool = False) -> Reasoning:
        """Open the streams with the trigger tokens (Eq. 3) and take T steps (Eq. 4, 5)."""
        return reason(
            self.encoder,
            histories,
            self.trigger.weight,
            lambda t, states: states + self.step_embedding.weight[t],
            self.steps,
            with_attention=with_attention,
        )


def _labels(batch: Batch) -> Tensor:
    """Of each of the N histories its user and its target, int64 [N, 2]: one with either is a false negative."""
    counted = batch.counted
    users = batch.users if counted is None else batch.users[counted.index // counted.positions.shape[1]]
    return torch.stack([users, batch.each_target], dim=1)


def _contrast(
    view1: Tensor,
    view2: Tensor,
    labels: Tensor | None,
    sizes: tuple[int, ...],
    temperature: float,
    share: Share | None = None,
) -> Tensor:
    """Eq. 8 of views [G, N, d] of N histories, each compared within its group of so many; as printed with one group.

    With labels [N, K], those with one in common are not compared. With a share all processes have the same views, and
    each computes some of the groups.
    """
    terms = [] if share is None else [nothing(view1, view2)]
    first = dealt = 0
    for size, same in groupby(sizes):  # groups of one size are one call
        count = len(list(same))
        own = slice(first, first + count * size)
        first = own.stop
        # [G·count, size, d]
        groups = [view[:, own].unflatten(1, (count, size)).flatten(0, 1) for view in (view1, view2)]
        alike = None
        if labels is not None:
            alike = labels[own].unflatten(0, (count, size)).repeat(view1.shape[0], 1, 1)  # [G·count, size, K]
        weight = count * size / view1.shape[1]
        if share is not None:
            every = len(groups[0])
            mine = slice((share.rank - dealt) % share.world_size, None, share.world_size)
            dealt += every
            groups = [view[mine] for view in groups]
            alike = None if alike is None else alike[mine]
            weight *= len(groups[0]) / every
        if weight:
            terms.append(weight * info_nce(*groups, temperature=temperature, labels=alike))
    value = torch.stack(terms).sum()
    return value if share is None else total(value)
