"""LARES (arXiv 2505.16865), depth-recurrent latent reasoning, with its self-supervised pre-training."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from plr.data import Batch, CountedTargets, Share
from plr.models.collectives import contrast
from plr.models.encoder import SequenceEncoder, at_last_position, at_positions
from plr.models.items.encoders import ItemEncoder
from plr.models.layers.length_buckets import length_buckets
from plr.models.layers.linear import Linear
from plr.models.layers.transformer import TransformerLayer
from plr.models.methods.reasoning import BOTH_WAYS
from plr.models.recommender import Losses, RecommenderModel
from plr.models.sampled_items import linear_cross_entropy
from plr.options import LARESOptions

STATE_SCALE = 3.0  # of T_0, a normal variable truncated at ±3σ
RATE_DEVIATION = 0.5  # σ of the logarithm of the Poisson rate of training's step counts


class Adapter(nn.Module):
    """How a step's input is made of the last step's states T and the pre-block's H, both [B, L, d].

    Args:
        kind: "mean" (T + H) / 2; "concat" W [T; H] + b; "gate" g·T + (1 − g)·H with one learned g = sigmoid(w).
        dim: width d.
    """

    def __init__(self, kind: Literal["mean", "concat", "gate"], dim: int):
        super().__init__()
        self.kind = kind
        if kind == "concat":
            self.linear = Linear(2 * dim, dim)
        elif kind == "gate":
            self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor, prefix: Tensor) -> Tensor:
        """Return the step's input [B, L, d]."""
        if self.kind == "mean":
            return (states + prefix) / 2
        if self.kind == "concat":
            return self.linear(torch.cat([states, prefix], dim=-1))
        return torch.lerp(prefix, states, torch.sigmoid(self.weight))


class LARESRecommender(RecommenderModel):
    """A pre-block (the encoder) computes H once; a core-block refines the states of all positions again and again.

    T_i = core(LayerNorm(adapter(T_{i−1}, H))), i = 1..k, from a random T_0; a history is represented by its last
    position's state after the last step. Training draws k per batch (`sample_steps`), evaluation takes k = m and the
    same T_0 for every history, one vector per position, drawn when the model is built and saved with its weights: what
    a history gets does not depend on the batch it is in.

    Pre-training minimises  CE + α·(trajectory alignment) + γ·(step alignment). Both are symmetric InfoNCE over the
    batch on the scores' scale (dot products, or cosines where items are scored so): of each sequence with its positive,
    another training sequence with the same target; and of each last state with that of one step, drawn uniformly.

    Args:
        items: the item encoder.
        encoder: the pre-block; the core-block reads as it does, causally or both ways.
        options: m is `mean_steps`, the steps of evaluation and about the mean of training's less one; α is
            `trajectory_weight`, γ `step_weight`, τ of both alignments `contrastive_temperature`.
    """

    options: LARESOptions
    evaluation_state: Tensor

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: LARESOptions):
        super().__init__(items, encoder, options)
        self.same_target_positives = options.trajectory_weight > 0
        self.adapter = Adapter(options.lares_adapter, encoder.options.dim)
        self.core_norm = nn.LayerNorm(encoder.options.dim, eps=1e-12)
        self.core = nn.ModuleList(TransformerLayer(encoder.options) for _ in range(options.core_layers))
        self.initialize()
        self.register_buffer("evaluation_state", random_states(torch.empty(encoder.max_length, encoder.options.dim)))

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "trajectory", "step"}; a term whose weight is 0 is not listed.

        With `trajectory_weight` the batch holds 2B rows: B sequences, then the positive of each. Other rows with the
        same target are negatives like any other, as in the public code. Without it rows may have a target at every
        position: all of them predict, and a state is aligned with one of its own steps among the other rows' states.
        """
        batch, table, candidates = self.step_items(batch)
        counted = batch.counted
        if counted is not None and self.same_target_positives:
            raise ValueError("sequence rows have no positives of the same target; set trajectory_weight to 0")
        share = batch.share
        rows = len(batch.each_target) // (2 if self.same_target_positives else 1)  # N
        generator = None if share is None else share.generator("cpu")
        steps = self.sample_steps(generator)
        start = None if share is None else self.shared_start(share, table, batch.item_ids.shape[1])
        states = self.queries(
            self.reasoning_states(table, batch.item_ids, batch.lengths, steps, start, counted)
        )  # [2N | N, k, d]
        final = states[:rows, -1]  # [N, d]
        losses = {
            "next_item": linear_cross_entropy(
                final, candidates, batch.each_target[:rows], temperature=self.temperature
            )
        }
        if self.options.trajectory_weight:
            losses["trajectory"] = self.options.trajectory_weight * self._alignment(final, states[rows:, -1], batch)
        if self.options.step_weight:
            # A single step has nothing to be aligned with.
            drawn = int(torch.randint(steps, (), device="cpu", generator=generator))
            step = self._alignment(final, states[:rows, drawn], batch) if steps > 1 else final.new_zeros(())
            losses["step"] = self.options.step_weight * step
        return losses

    def target_counts(self, batch: Batch) -> tuple[int | Tensor, int | Tensor]:
        """Return N, without the positives: of these rows, and of all."""
        own, every = super().target_counts(batch)
        if not self.same_target_positives:
            return own, every
        return own // 2, every if batch.share is not None else every // 2

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the last position's state after m steps, [B, d]."""
        table = self.item_table() if table is None else table
        return self.queries(self.reasoning_states(table, batch.item_ids, batch.lengths, self.options.mean_steps)[:, -1])

    def reasoning_states(
        self,
        table: Tensor,
        item_ids: Tensor,
        lengths: Tensor,
        steps: int,
        start: Tensor | None = None,
        counted: CountedTargets | None = None,
    ) -> Tensor:
        """Return the last position's state after each step, [B, steps, d]; or [N, steps, d], those that count.

        Args:
            table: item vectors [V, d].
            item_ids: int64 [B, L], right-padded.
            lengths: int64 [B].
            steps: k, at least 1.
            start: T_0 [B, L, d]; by default `initial_states`.
            counted: which positions' states are wanted.

        Raises:
            ValueError: positions of an encoder that reads both ways.
        """
        if counted is not None and not self.encoder.causal:
            raise ValueError(BOTH_WAYS)
        buckets = length_buckets(lengths, item_ids.shape[1]) if counted is None else None
        if buckets is None:
            return self._reasoning_states(self.embed(table, item_ids), lengths, steps, start, counted)
        # A row's positive is of any length; sorted, few rows are padded to the longest.
        embeddings = self.embed(table, item_ids[buckets.order]).split(buckets.rows)
        sorted_lengths = lengths[buckets.order].split(buckets.rows)
        starts = [None] * len(buckets.rows) if start is None else start[buckets.order].split(buckets.rows)
        outputs = [
            self._reasoning_states(
                embedding[:, :longest], own_lengths, steps, None if own_start is None else own_start[:, :longest]
            )
            for embedding, own_lengths, own_start, longest in zip(
                embeddings, sorted_lengths, starts, buckets.longest, strict=True
            )
        ]
        return torch.cat(outputs).index_select(0, buckets.inverse)

    def _reasoning_states(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        steps: int,
        start: Tensor | None,
        counted: CountedTargets | None = None,
    ) -> Tensor:
        encoded = self.encoder.encode(embeddings, lengths, all_positions=True)
        prefix = encoded.hidden  # [B, L, d]
        assert prefix is not None  # all positions were asked for
        states = self.initial_states(prefix) if start is None else start
        outputs = []
        for _ in range(steps):
            states = self.core_norm(self.adapter(states, prefix))
            for layer in self.core:
                states, _ = layer(states, lengths, self.encoder.causal)
            if counted is None:
                outputs.append(at_last_position(states, lengths).squeeze(1))
            else:
                outputs.append(at_positions(states, counted.positions).flatten(0, 1)[counted.index])
        return torch.stack(outputs, dim=1)

    def initial_states(self, like: Tensor) -> Tensor:
        """Return T_0 for states like [B, L, d]: redrawn in training, the model's own in evaluation."""
        if self.training:
            return random_states(torch.empty_like(like))
        return self.evaluation_state[: like.shape[1]].to(like.dtype).expand_as(like)

    def shared_start(self, share: Share, like: Tensor, width: int, *, in_buckets: bool = True) -> Tensor:
        """Return training's T_0 [b, width, d] of a process's rows: drawn for the whole batch as one process draws it.

        That is for a bucket of like length after the other, or for all rows at once.
        """
        whole, dim, generator = share.whole, like.shape[1], share.generator(like.device)
        longest = whole.item_ids.shape[1]
        buckets = None
        if in_buckets and whole.counted is None:
            buckets = length_buckets(whole.lengths.to(like.device), longest)
        if buckets is None:
            states = random_states(like.new_empty(len(whole), longest, dim), generator)
        else:
            states = like.new_zeros(len(whole), longest, dim)
            for own, length in zip(buckets.order.split(buckets.rows), buckets.longest, strict=True):
                states[own, :length] = random_states(like.new_empty(len(own), length, dim), generator)
        return states[share.rows.to(like.device), :width]

    def sample_steps(self, generator: torch.Generator | None = None) -> int:
        """Draw training's k = min(Poisson(rate) + 1, 3m) with rate ~ LogNormal(log m − σ²/2, σ), whose mean is m.

        On the CPU, whose generator training seeds for every step; another one where several processes share the step.
        """
        rate = torch.empty((), device="cpu").log_normal_(
            math.log(self.options.mean_steps) - RATE_DEVIATION**2 / 2, RATE_DEVIATION, generator=generator
        )
        return min(int(torch.poisson(rate, generator=generator)) + 1, 3 * self.options.mean_steps)

    def _alignment(self, one: Tensor, two: Tensor, batch: Batch) -> Tensor:
        """Both directions' mean InfoNCE between one and two, [N, d] each, with targets of one number in their row."""
        temperature = self.options.contrastive_temperature
        if batch.share is not None:
            sizes = batch.share.group_sizes(batch)
            one, two = one[:, None], two[:, None]
            there = contrast(one, two, sizes, batch.share, temperature)
            return (there + contrast(two, one, sizes, batch.share, temperature)) / 2
        sizes = (one.shape[0],) if batch.counted is None else batch.counted.sizes
        if len(sizes) == 1:  # not split, so that gradients of what several terms read are added in one order
            groups = [(one, two)]
        else:
            groups = list(zip(one.split(sizes), two.split(sizes), strict=True))
        terms = []
        for size, (own_one, own_two) in zip(sizes, groups, strict=True):
            own = torch.arange(size, device=one.device)
            there = linear_cross_entropy(own_one, own_two, own, temperature=temperature)
            back = linear_cross_entropy(own_two, own_one, own, temperature=temperature)
            terms.append(size / one.shape[0] * (there + back) / 2)
        return torch.stack(terms).sum()


def random_states(out: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill `out` with 3·z, z standard normal, truncated at ±3σ."""
    return nn.init.trunc_normal_(out, mean=0.0, std=1.0, a=-3.0, b=3.0, generator=generator).mul_(STATE_SCALE)
