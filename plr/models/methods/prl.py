"""ReaRec-PRL, progressive reasoning learning (arXiv 2503.22675), on any sequence encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr.data import Batch, Share
from plr.models.collectives import contrast
from plr.models.methods.history_buckets import buckets
from plr.models.methods.rearec import ReaRecRecommender
from plr.models.methods.reasoning import StepInput
from plr.models.recommender import Losses
from plr.models.sampled_items import Candidates, linear_cross_entropy
from plr.options import PRLOptions


class PRLRecommender(ReaRecRecommender):
    """Represents a history by its last state; the earlier a state, the higher the temperature it predicts under.

    Minimises  CE(h_K at τ) + w_p·mean over t < K of CE(h_t at τ·α^(K−t)) + w_c·C. From epoch `warmup_epochs` on, C
    pulls the states h_1..h_K of a noisy copy of each row (its own dropout, its own cache, Gaussian noise on every
    step's input) towards those of the clean row: InfoNCE over the batch, dot product / τ, noisy rows looking for clean
    ones. The copy's step t starts from the clean state h_{t−1}, so noise does not add up over the steps' inputs.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        options: K is `steps`, w_p `progressive_weight`, α `temperature_scale`, w_c `contrastive_weight`.
    """

    options: PRLOptions

    def temperatures(self) -> list[float]:
        """Return the temperatures of the states t = 0..K: τ·α^(K−t), falling to τ."""
        scale = self.options.temperature_scale
        return [self.temperature * scale ** (self.steps - t) for t in range(self.steps + 1)]

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "progressive", "noise_contrastive"}; a term whose weight is 0 is not listed.

        Nor is the last during the warm-up: `self.epoch`, which training sets, counts from 0.
        """
        batch, table, candidates = self.step_items(batch)
        targets = batch.each_target  # [N]
        histories, counted = targets.shape[0], batch.counted
        weight = self.options.contrastive_weight
        assert weight is not None  # set when the options are made
        with_noise = weight > 0 and self.epoch >= self.options.warmup_epochs
        inputs, views = (self._noisy_inputs(batch.share, table), 2) if with_noise else (None, 1)
        states = self.states(table, batch.item_ids, batch.lengths, inputs, counted, views)  # [views·N, K + 1, d]
        states = self.queries(states)
        clean, noisy = states[:histories], states[histories:]

        losses = self._predictions(clean, candidates, targets)
        if with_noise:
            losses["noise_contrastive"] = weight * self._noise_contrast(clean, noisy, batch)
        return losses

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return h_K [B, d]."""
        table = self.item_table() if table is None else table
        return self.queries(self.states(table, batch.item_ids, batch.lengths)[:, -1])

    def _predictions(self, states: Tensor, candidates: Candidates, targets: Tensor) -> Losses:
        """The cross-entropies of states [N, K + 1, d]: the last one's, and the mean of those before it.

        Two passes over the items and not one: a mean's gradients are ready when its value is, with three products of
        states and items, where a loss for each row takes four.
        """
        losses = {"next_item": linear_cross_entropy(states[:, -1], candidates, targets, temperature=self.temperature)}
        if self.options.progressive_weight:
            # A higher temperature of a state is a shorter state.
            remaining = torch.arange(-self.steps, 0, device=states.device, dtype=states.dtype)  # t − K
            shrink = self.options.temperature_scale**remaining  # τ / temperatures()
            progressive = linear_cross_entropy(
                (states[:, :-1] * shrink[:, None]).flatten(0, 1),
                candidates,
                targets.repeat_interleave(self.steps),
                temperature=self.temperature,
            )
            losses["progressive"] = self.options.progressive_weight * progressive
        return losses

    def _noise_contrast(self, clean: Tensor, noisy: Tensor, batch: Batch) -> Tensor:
        """InfoNCE of the states t = 1..K of [N, K + 1, d] each, with targets of one number in their row; its mean."""
        if batch.share is not None:
            sizes = batch.share.group_sizes(batch)
            return contrast(noisy[:, 1:], clean[:, 1:], sizes, batch.share, self.temperature)
        sizes = (clean.shape[0],) if batch.counted is None else batch.counted.sizes
        terms = []
        for size, own_clean, own_noisy in zip(sizes, clean.split(sizes), noisy.split(sizes), strict=True):
            own = torch.arange(size, device=clean.device)
            share = size / clean.shape[0]
            terms.append(
                share
                * torch.stack(
                    [
                        linear_cross_entropy(own_noisy[:, t], own_clean[:, t], own, temperature=self.temperature)
                        for t in range(1, self.steps + 1)
                    ]
                ).mean()
            )
        return torch.stack(terms).sum()

    def _noisy_inputs(self, share: Share | None, like: Tensor) -> Callable[[Tensor | None], StepInput]:
        """Return what makes inputs of states, [2B, X, d] of [2B, X, d], of which only the first, clean half counts."""
        drawn = None if share is None else self._draw_noise(share, like)  # [B, X, K, d]

        def of_rows(rows: Tensor | None) -> StepInput:
            def clean_and_noisy(t: int, states: Tensor) -> Tensor:
                clean = self.step_input(t, states[: states.shape[0] // 2])
                if drawn is None:
                    noise = torch.randn_like(clean)
                else:
                    noise = (drawn if rows is None else drawn[rows])[:, : clean.shape[1], t]
                return torch.cat([clean, clean + self.options.noise * noise])

            return clean_and_noisy

        return of_rows

    def _draw_noise(self, share: Share, like: Tensor) -> Tensor:
        """Return the noise [b, X, K, d] of a process's rows: drawn for the whole batch as one process draws it."""
        whole, steps = share.whole, self.steps
        most = 1 if whole.counted is None else whole.counted.positions.shape[1]
        noise = like.new_zeros(len(whole), most, steps, like.shape[1])
        generator = share.generator(like.device)
        for rows, _, counted, _ in buckets(whole.lengths.to(like.device), whole.item_ids.shape[1], whole.counted):
            count = len(whole) if rows is None else len(rows)
            histories = 1 if counted is None else counted.positions.shape[1]
            for t in range(steps):
                drawn = torch.randn(
                    count, histories, like.shape[1], generator=generator, device=like.device, dtype=like.dtype
                )
                noise[slice(None) if rows is None else rows, :histories, t] = drawn
        return noise[share.rows.to(like.device)]
