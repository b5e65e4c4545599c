"""LARES' second phase: reinforcement post-training by group-relative policy optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from plr.data import Batch
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.lares import LARESRecommender
from plr.models.recommender import Losses
from plr.options import LARESPostTrainingOptions
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

    The first term is no policy gradient of the reward: it takes log p(target) of the better rollouts away from that of
    the worse ones. `extra_metrics` therefore holds the rollouts' mean reward beside the spread, within a row, of the
    rewards and of the last state's l (standard deviations with G − 1, averaged over rows).

    Args:
        items: the item encoder.
        encoder: the pre-block.
        options: G is `rollouts`, β `reference_weight`.
    """

    options: LARESPostTrainingOptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: LARESPostTrainingOptions):
        super().__init__(items, encoder, options)
        self.same_target_positives = False
        # In a tuple, so that it is no submodule: neither trained nor saved, and without a part in `train()`.
        self._reference: tuple[LARESRecommender, ...] = ()

    def start_from(self, pretrained: LARESRecommender) -> None:
        """Take over the weights of `pretrained`, and keep it as the frozen reference."""
        self.load_state_dict(pretrained.state_dict())
        self._reference = (pretrained.eval().requires_grad_(False),)

    @property
    def reference(self) -> LARESRecommender | None:  # type: ignore[override]
        """The frozen pre-trained model, on this model's device; None where training was not begun (in serving)."""
        if not self._reference:
            return None
        return self._reference[0].to(self.evaluation_state.device)

    def losses(self, batch: Batch) -> Losses:
        """Return {"policy", "reference"}; sets `extra_metrics`: "reward", "reward_spread" and "log_p_spread"."""
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
        share = batch.share
        for _ in range(self.options.rollouts):
            steps = self.sample_steps(None if share is None else share.generator("cpu"))
            length = batch.item_ids.shape[1]
            if share is None:
                start = self.initial_states(table.new_empty(rows, length, table.shape[1]))
            else:
                start = self.shared_start(share, table, length, in_buckets=False)
            rollouts.append(self.queries(self.reasoning_states(table, batch.item_ids, batch.lengths, steps, start)))
            with torch.no_grad():
                states = reference.reasoning_states(reference_table, batch.item_ids, batch.lengths, steps, start)
                references.append(reference.queries(states))

        with torch.no_grad():
            final = torch.cat([states[:, -1] for states in rollouts])  # [G·B, d]
            rewards = ranking_rewards(final, candidates, batch.targets.repeat(len(rollouts)), self.options.reward)
            rewards = rewards.unflatten(0, (len(rollouts), rows))  # [G, B]
        advantages = group_advantages(rewards)
        log_p = _log_probabilities(rollouts, candidates, batch.targets, self.temperature)
        self.extra_metrics = {
            "reward": rewards.mean(),
            "reward_spread": rewards.std(dim=0).mean(),
            "log_p_spread": torch.stack([own[:, -1].detach() for own in log_p]).std(dim=0).mean(),
        }
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
            "reference": self.options.reference_weight * torch.stack(divergence).mean(),
        }


def ranking_rewards(
    states: Tensor, candidates: Tensor, targets: Tensor, reward: Literal["recall", "ndcg"]
) -> Tensor:
    """Return Recall@10 or NDCG@10, float32 [N], of states [N, d] with one target each, int64 [N], among all items."""
    shown = min(REWARDED, candidates.shape[0])
    _, ids = top_items(states, candidates, shown)  # [N, K]
    hits = (ids == targets[:, None]).to(torch.float32)
    if reward == "ndcg":
        hits = hits / torch.log2(torch.arange(shown, device=hits.device) + 2.0)
    return hits.sum(dim=1)


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
