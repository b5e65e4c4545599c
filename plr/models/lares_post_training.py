"""LARES' second phase: reinforcement post-training by group-relative policy optimisation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from plr.data import Batch
from plr.models.encoder import SequenceEncoder
from plr.models.items import ItemEncoder
from plr.models.lares import LARESRecommender
from plr.models.recommender import Losses
from plr_kernels import linear_cross_entropy, top_items

REWARDED = 10  # the K of Recall@K and NDCG@K
DEVIATION_FLOOR = 1e-4  # keeps groups of nearly equal rewards from large advantages


class PostTrainedLARES(LARESRecommender):
    """The policy: a pre-trained LARES that is rewarded for ranking the target high.

    For each row G rollouts are made, each with its own T_0, dropout and number of steps k. A rollout's reward r is that
    of its last state; its advantage is A = (r − mean) / (std + 1e-4) over the row's G rollouts. With
    l = log p(target) of a step's state, the loss is the mean over rows, rollouts and a rollout's steps of

        −exp(l − stop_gradient(l))·A + β·(exp(l_ref − l) − (l_ref − l) − 1),

    where l_ref is that of the frozen pre-trained model (without dropout) from the same T_0 at the same step. Only
    l, l_ref and the target's place among the first ten are needed: scores of all items are never held.

    Args:
        items: the item encoder.
        encoder: the pre-block.
        rollouts: G, at least 2.
        reward: "recall" or "ndcg", at 10.
        reference_weight: β.
        options: those of `LARESRecommender`; the alignments' weights mean nothing here.
    """

    def __init__(
        self,
        items: ItemEncoder,
        encoder: SequenceEncoder,
        *,
        rollouts: int = 4,
        reward: Literal["recall", "ndcg"] = "recall",
        reference_weight: float = 1.0,
        **options: Any,
    ):
        super().__init__(items, encoder, **options)
        self.with_partners = False
        self.rollouts = rollouts
        self.reward = reward
        self.reference_weight = reference_weight
        # In a tuple, so that it is no submodule: neither trained nor saved, and without a part in `train()`.
        self._reference: tuple[LARESRecommender, ...] = ()

    def start_from(self, pretrained: LARESRecommender) -> None:
        """Take over the weights of `pretrained`, and keep it as the frozen reference."""
        self.load_state_dict(pretrained.state_dict())
        self._reference = (pretrained.eval().requires_grad_(False),)

    @property
    def reference(self) -> LARESRecommender | None:
        """The frozen pre-trained model, on this model's device; None where training was not begun (in serving)."""
        if not self._reference:
            return None
        return self._reference[0].to(self.evaluation_state.device)

    def losses(self, batch: Batch) -> Losses:
        """Return {"policy", "reference"}; `observed` then holds the rollouts' mean "reward"."""
        reference = self.reference
        if reference is None:
            raise RuntimeError("there is no pre-trained model to start from; call start_from first")
        table = self.item_table()
        candidates = self.candidates(table)
        rows = batch.lengths.shape[0]
        with torch.no_grad():
            reference_table = reference.item_table()
            reference_candidates = reference.candidates(reference_table)

        rollouts, references = [], []  # [B, k, d] each
        for _ in range(self.rollouts):
            steps = self.sample_steps()
            length = batch.item_ids.shape[1]
            start = self.initial_states(table.new_empty(rows, length, table.shape[1]))
            rollouts.append(self.queries(self.reasoning_states(table, batch.item_ids, batch.lengths, steps, start)))
            with torch.no_grad():
                states = reference.reasoning_states(reference_table, batch.item_ids, batch.lengths, steps, start)
                references.append(reference.queries(states))

        advantages = self._advantages(torch.stack([states[:, -1] for states in rollouts]), candidates, batch.targets)
        log_p = _log_probabilities(rollouts, candidates, batch.targets, self.temperature)
        with torch.no_grad():
            reference_log_p = _log_probabilities(
                references, reference_candidates, batch.targets, reference.temperature
            )
        policy, divergence = [], []
        for advantage, own, other in zip(advantages, log_p, reference_log_p, strict=True):
            policy.append(-advantage * torch.exp(own - own.detach()).mean(dim=1))  # [B]
            divergence.append((torch.exp(other - own) - (other - own) - 1).mean(dim=1))
        return {
            "policy": torch.stack(policy).mean(),
            "reference": self.reference_weight * torch.stack(divergence).mean(),
        }

    @torch.no_grad()
    def _advantages(self, final: Tensor, candidates: Tensor, targets: Tensor) -> Tensor:
        """The advantages [G, B] of the rollouts' last states [G, B, d]."""
        shown = min(REWARDED, candidates.shape[0])
        _, ids = top_items(final.flatten(0, 1), candidates, shown)  # [G·B, K]
        hits = (ids == targets.repeat(self.rollouts)[:, None]).to(torch.float32)
        if self.reward == "ndcg":
            hits = hits / torch.log2(torch.arange(shown, device=hits.device) + 2.0)
        rewards = hits.sum(dim=1).unflatten(0, (self.rollouts, -1))
        self.observed = {"reward": rewards.mean()}
        return group_advantages(rewards)


def group_advantages(rewards: Tensor) -> Tensor:
    """Return (r − mean) / (std + 1e-4) over the first dimension of rewards [G, B], std with G − 1."""
    return (rewards - rewards.mean(dim=0)) / (rewards.std(dim=0) + DEVIATION_FLOOR)


def _log_probabilities(rollouts: list[Tensor], candidates: Tensor, targets: Tensor, temperature: float) -> list[Tensor]:
    """The log-probability of the target [B, k] for the states [B, k, d] of each rollout, in one pass over the items."""
    steps = [states.shape[1] for states in rollouts]
    losses = linear_cross_entropy(
        torch.cat(rollouts, dim=1).flatten(0, 1),
        candidates,
        targets.repeat_interleave(sum(steps)),
        temperature=temperature,
        reduction="none",
    )
    return list((-losses).unflatten(0, (-1, sum(steps))).split(steps, dim=1))
