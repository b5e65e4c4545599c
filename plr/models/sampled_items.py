"""Losses over the items: over all, as the operators have them, or over those sampled for a step.

The functions have the operators' names and arguments; where sampled items stand for the table they compute with these,
and where processes share the table, together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import plr_kernels
from plr.models.sharded_items import ShardedItems
from plr.options import RecommenderOptions

__all__ = [
    "Candidates",
    "ItemSampler",
    "SampledItems",
    "linear_cross_entropy",
    "mixture_cross_entropy",
    "pairwise_kl",
    "positive_power",
]


class ItemSampler:
    """Draws the items that a step's targets are told from, as the options `sampler` and `negatives` say.

    The draws are a function of the seed alone, which training sets before each step: (run's seed, step), equal on all
    of its processes.

    Args:
        options: loss, sampler, negatives and logq.
        target_counts: how often each item is a target in training: int64 [V].
    """

    def __init__(self, options: RecommenderOptions, target_counts: Tensor):
        self.options = options
        self.num_items = len(target_counts)
        self.seed = 0
        # of no use to uniform ones
        self._cumulative = None if options.sampler == "uniform" else target_counts.cumsum(0)

    def draw(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the items of a step, and for each the logarithm of how often it is expected among them.

        Args:
            targets: int64 [N], of the step, in all processes.

        Returns:
            int64 [K] and float32 [K], or None where the loss is not corrected; on the device of the targets. Some may
            be a row's own target, and some occur twice.
        """
        options, device = self.options, targets.device
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        if options.sampler in ("uniform", "mixed"):
            parts.append(torch.randint(self.num_items, (options.negatives,), generator=generator).to(device))
        if options.sampler == "popularity":
            assert self._cumulative is not None
            places = torch.randint(int(self._cumulative[-1]), (options.negatives,), generator=generator)
            parts.append(torch.searchsorted(self._cumulative, places, right=True).to(device))
        if options.sampler in ("in_batch", "mixed"):
            chosen = torch.randperm(len(targets), generator=generator)[: options.negatives]
            parts.append(targets[chosen.to(device)])
        items = torch.cat(parts)
        if options.loss != "sampled_softmax" or not options.logq:
            return items, None
        return items, self._expected(items.cpu(), len(targets)).log().float().to(device)

    def _expected(self, items: Tensor, targets: int) -> Tensor:
        """How often each of the items is expected in a list, of so many targets in the batch: float64 [K]."""
        options = self.options
        expected = torch.zeros(len(items), dtype=torch.float64)
        if options.sampler in ("uniform", "mixed"):
            expected += options.negatives / self.num_items
        if self._cumulative is not None:
            draws = float(options.negatives)
            if options.sampler != "popularity":  # of the batch's targets the row's own is no draw
                draws = min(options.negatives, targets) * max(targets - 1, 1) / targets
            before = torch.where(items > 0, self._cumulative[(items - 1).clamp(min=0)], 0)
            expected += draws * (self._cumulative[items] - before) / self._cumulative[-1]
        return expected


@dataclass(frozen=True)
class SampledItems:
    """What a step's targets are scored among.

    Attributes:
        rows: [U, d], the vectors of the items that the step names, as scores take them.
        ids: int64 [K], which of the rows were sampled.
        log_q: float32 [K] of these, or None.
        kind: "softmax" or "bce".
        positive_power: of the target's sigmoid.
        offset: what is added to every score under a sigmoid; no ranking depends on it.
    """

    rows: Tensor
    ids: Tensor
    log_q: Tensor | None
    kind: str
    positive_power: float
    offset: float = 0.0


Candidates = Tensor | SampledItems | ShardedItems
"""What targets are told from: the vectors of all items, those sampled for a step, or a process's of all."""


def positive_power(options: RecommenderOptions, negatives: int, num_items: int) -> float:
    """Return gBCE's β = α(t(1 − 1/α) + 1/α), α the share of the other items that is sampled; 1 for other losses."""
    if options.loss != "gbce":
        return 1.0
    sampled = min(negatives / max(num_items - 1, 1), 1.0)
    return sampled * options.gbce_t + 1 - options.gbce_t


def starting_score(power: float, negatives: int) -> float:
    """Return the score that is best where all items have the same: of β log σ(s) + K log(1 − σ(s)), log(β / K).

    Sigmoids, unlike a softmax, depend on what all scores have in common. From 0, where a model begins, to the −6 or so
    of some hundred negatives it has to come by item and state vectors that get a common direction: hundreds of steps
    in which it learns nothing else.
    """
    return math.log(power / negatives)


def linear_cross_entropy(
    states: Tensor, items: Candidates, targets: Tensor, *, temperature: float, reduction: str = "mean"
) -> Tensor:
    """The loss of states [R, d] with targets [R]: `plr_kernels.linear_cross_entropy` or `candidate_cross_entropy`."""
    if isinstance(items, ShardedItems):
        return items.linear_cross_entropy(states, targets, temperature, reduction)
    if isinstance(items, Tensor):
        return plr_kernels.linear_cross_entropy(states, items, targets, temperature=temperature, reduction=reduction)
    rows = items.rows
    if items.offset:  # one more column; states of any scale times an item's number
        states = torch.cat([states, states.new_ones(len(states), 1)], dim=1)
        rows = torch.cat([rows, rows.new_full((len(rows), 1), items.offset * temperature)], dim=1)
    return plr_kernels.candidate_cross_entropy(
        states,
        rows,
        targets,
        items.ids,
        log_q=items.log_q,
        kind=items.kind,
        positive_power=items.positive_power,
        temperature=temperature,
        reduction=reduction,
    )


def mixture_cross_entropy(
    states: Tensor, log_weights: Tensor, items: Candidates, targets: Tensor, *, temperature: float
) -> Tensor:
    """Likewise `plr_kernels.mixture_cross_entropy` or `candidate_mixture_cross_entropy`."""
    if isinstance(items, ShardedItems):
        return items.mixture_cross_entropy(states, log_weights, targets, temperature)
    if isinstance(items, Tensor):
        return plr_kernels.mixture_cross_entropy(states, log_weights, items, targets, temperature=temperature)
    return plr_kernels.candidate_mixture_cross_entropy(
        states, log_weights, items.rows, targets, items.ids, log_q=items.log_q, temperature=temperature
    )


def pairwise_kl(
    states: Tensor, items: Candidates, *, temperature: float, detach_reference: bool = False
) -> Tensor:
    """`plr_kernels.pairwise_kl` over all items, or over the sampled ones, each weighed by how rarely it is sampled."""
    if isinstance(items, ShardedItems):
        return items.pairwise_kl(states, temperature, detach_reference)
    if not isinstance(items, Tensor):
        sampled, log_q = functional.embedding(items.ids, items.rows), items.log_q
        if log_q is not None:  # a column more is what scores are corrected by
            # Only differences of the corrections matter: about 0 they are small in half precision, too.
            shift = temperature * (log_q.mean() - log_q)
            states = torch.cat([states, states.new_ones(*states.shape[:-1], 1)], dim=-1)
            sampled = torch.cat([sampled, shift[:, None].to(sampled.dtype)], dim=1)
        items = sampled
    return plr_kernels.pairwise_kl(states, items, temperature=temperature, detach_reference=detach_reference)
