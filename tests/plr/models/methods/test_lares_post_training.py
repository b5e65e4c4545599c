"""LARES' reinforcement post-training: its loss against the equations, and what follows from them."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from plr.models.methods.lares_post_training import group_advantages
from plr_kernels.dispatch.backend import runnable_backends
from tests.plr.models import published
from tests.plr.models.helpers import (
    assert_backends_agree,
    close,
    gradients,
    random_batch,
    scored_by_cosine,
    small_model,
    total,
)
from tests.plr.models.methods.test_lares import start_for


def post_training(spread=0.3, **changes):
    """A policy some steps away from its reference."""
    model = small_model(method="lares", phase="rpt", init="somewhere", spread=spread, **changes)
    model.start_from(small_model(method="lares", spread=spread))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def fixed(model, steps, starts):
    """The model whose rollouts take these steps from these T_0, again in every call of `losses`."""
    draws = {"steps": 0, "starts": 0}

    def sample_steps(generator):
        draws["steps"] += 1
        return steps[(draws["steps"] - 1) % len(steps)]

    def initial_states(like):
        draws["starts"] += 1
        return starts[(draws["starts"] - 1) % len(starts)].to(like.dtype)

    model.sample_steps, model.initial_states = sample_steps, initial_states
    return model


def published_terms(model, batch, steps, starts, reward, beta):
    def log_p(source, start, count):
        states = published.all_lares_states(source, batch.item_ids, batch.lengths, start, count)  # [B, k, d]
        p = published.softmax(states @ source.item_table().T / source.temperature)
        return states[:, -1] @ source.item_table().T, torch.log(p[torch.arange(len(p)), :, batch.targets])  # [B, k]

    rewards, own, other = [], [], []
    for count, start in zip(steps, starts, strict=True):
        scores, found = log_p(model, start, count)
        rank = 1 + (scores > scores.gather(1, batch.targets[:, None])).sum(dim=1)
        value = (rank <= 10).double()
        rewards.append(value if reward == "recall" else value / torch.log2(rank + 1.0))
        own.append(found)
        other.append(log_p(model.reference, start, count)[1].detach())
    policy, divergence = [], []
    for row in range(len(batch.targets)):
        group = torch.stack([value[row] for value in rewards])
        mean = group.sum() / len(group)
        deviation = torch.sqrt(((group - mean) ** 2).sum() / (len(group) - 1))
        for g in range(len(group)):
            advantage = ((group[g] - mean) / (deviation + 1e-4)).detach()
            for lp, ref in zip(own[g][row], other[g][row], strict=True):
                policy.append(-torch.exp(lp - lp.detach()) * advantage / steps[g])
                divergence.append(beta * (torch.exp(ref - lp) - (ref - lp) - 1) / steps[g])
    count = len(batch.targets) * len(steps)
    return torch.stack(policy).sum() / count, torch.stack(divergence).sum() / count, torch.stack(rewards).mean()


@pytest.mark.parametrize("reward", ["recall", "ndcg"])
@pytest.mark.parametrize("causal", [True, False])
def test_loss_and_gradients_are_those_of_the_published_equations(reward, causal):
    batch = random_batch((5, 1, 9, 3, 6, 2))
    steps = [3, 1, 2]
    starts = [start_for(batch) * scale for scale in (1.0, -0.7, 0.3)]
    model = fixed(post_training(reward=reward, rollouts=3, temperature=0.7, reference_weight=0.6), steps, starts)
    model.reference.temperature = 0.7
    model.encoder.causal = model.reference.encoder.causal = causal
    losses = model.losses(batch)
    policy, divergence, rewards = published_terms(model, batch, steps, starts, reward, 0.6)
    assert list(losses) == ["policy", "reference"]
    torch.testing.assert_close(losses["policy"], policy, rtol=1e-6, atol=1e-6)  # advantages are float32
    close(losses["reference"], divergence)
    assert divergence > 0.01
    assert model.extra_metrics["reward"].item() == pytest.approx(rewards.item(), rel=1e-6)
    ours, theirs = gradients(model, total(losses)), gradients(model, policy + divergence)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert any(gradient.count_nonzero() for gradient in ours.values())


@pytest.mark.parametrize("reward", ["recall", "ndcg"])
def test_the_first_term_raises_log_p_of_every_step_by_the_advantage(reward):
    """Its sign, and that all steps of a rollout count: central differences along a random direction of all weights.

    Only forward passes of the equations are differenced, with the advantages held: mean over rollouts, rows and steps
    of −A·l. Their error is of order ε².
    """
    batch = random_batch((5, 1, 9, 3, 6, 2) * 4)
    steps, rows = [3, 1, 2], torch.arange(24)
    starts = [start_for(batch) * scale for scale in (1.0, -0.7, 0.3)]
    model = fixed(post_training(reward=reward, rollouts=3), steps, starts)
    weights = dict(model.named_parameters())
    found = gradients(model, model.losses(batch)["policy"])
    generator = torch.Generator().manual_seed(4)
    direction = {name: torch.randn(value.shape, generator=generator).double() for name, value in weights.items()}
    slope = sum((found[name] * direction[name]).sum() for name in found)

    @torch.no_grad()
    def moved_by(size):
        """The rewards [G, B] and the mean over a rollout's steps of l [G, B] with the weights moved."""
        for name, value in weights.items():
            value += size * direction[name]
        rewards, log_p = [], []
        for count, start in zip(steps, starts, strict=True):
            states = published.all_lares_states(model, batch.item_ids, batch.lengths, start, count)  # [B, k, d]
            scores = states @ model.item_table().T
            rank = 1 + (scores[:, -1] > scores[rows, -1, batch.targets][:, None]).sum(dim=1)
            rewards.append((rank <= 10) / (1.0 if reward == "recall" else torch.log2(rank + 1.0)))
            log_p.append(torch.log(published.softmax(scores))[rows, :, batch.targets].mean(dim=1))
        for name, value in weights.items():
            value -= size * direction[name]
        return torch.stack(rewards).double(), torch.stack(log_p)

    advantages = group_advantages(moved_by(0.0)[0])
    assert advantages.any(dim=0).sum() >= 4
    up, down = moved_by(1e-4)[1], moved_by(-1e-4)[1]
    expected = -(advantages * (up - down)).mean() / 2e-4
    assert abs(expected) > 0.1
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


def test_rewards_and_their_spread_are_observed():
    batch = random_batch((5, 1, 9, 3))
    steps = [3, 1, 2]
    starts = [start_for(batch) * scale for scale in (1.0, -0.7, 0.3)]
    model = fixed(post_training(reward="ndcg", rollouts=3), steps, starts)
    model.losses(batch)
    rewards, log_p = [], []
    for count, start in zip(steps, starts, strict=True):
        scores = published.all_lares_states(model, batch.item_ids, batch.lengths, start, count)[:, -1]
        scores = scores @ model.item_table().T
        rank = 1 + (scores > scores.gather(1, batch.targets[:, None])).sum(dim=1)
        rewards.append(torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0))
        log_p.append(torch.log(published.softmax(scores))[torch.arange(4), batch.targets])
    rewards, log_p = torch.stack(rewards), torch.stack(log_p)  # [G, B]
    expected = {
        "reward": rewards.mean(),
        "reward_spread": rewards.std(dim=0).mean(),
        "log_p_spread": log_p.std(dim=0).mean(),
    }
    assert model.extra_metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0
        assert model.extra_metrics[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.1]])
    advantages = group_advantages(rewards)
    assert advantages[:, 0].tolist() == [0.0] * 4  # equal rewards teach nothing
    assert advantages.sum(dim=0).abs().max() < 1e-6
    assert advantages[3, 1].item() == pytest.approx(0.75 / (0.5 + 1e-4), rel=1e-6)
    assert advantages[0, 1].item() == pytest.approx(-0.25 / (0.5 + 1e-4), rel=1e-6)
    assert (advantages[:, 2].argmax(), advantages[:, 2].argmin()) == (0, 1)


def test_equal_rewards_leave_the_reference_alone_to_teach():
    model = post_training(rollouts=3)
    model.eval()  # all rollouts from the same T_0 without dropout: equal rewards
    model.sample_steps = lambda generator: 2
    losses = model.losses(random_batch())
    assert losses["policy"] == 0
    assert not any(gradient.count_nonzero() for gradient in gradients(model, losses["policy"]).values())


def test_the_policy_starts_as_its_reference():
    model = small_model(method="lares", phase="rpt", init="somewhere")
    model.start_from(small_model(method="lares", seed=3))
    assert model.losses(random_batch())["reference"].abs() < 1e-12
    assert torch.equal(model.evaluation_state, model.reference.evaluation_state)


def test_the_reference_is_frozen_and_no_part_of_the_model():
    model = post_training(hidden_dropout=0.5)
    names = small_model(method="lares").state_dict().keys()
    assert model.state_dict().keys() == names
    before = copy.deepcopy(model.reference.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()
    total(model.losses(random_batch())).backward()
    optimizer.step()
    assert not model.reference.training
    assert not any(parameter.requires_grad for parameter in model.reference.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.reference.state_dict().items())
    assert len(list(model.parameters())) == len(list(small_model(method="lares").parameters()))


def test_rollouts_differ_in_start_dropout_and_number_of_steps():
    model = post_training(hidden_dropout=0.3, rollouts=6).train()
    seen = []
    original = model.reasoning_states

    def spy(table, item_ids, lengths, steps, start):
        states = original(table, item_ids, lengths, steps, start)
        seen.append((steps, start, states))
        return states

    model.reasoning_states = spy
    torch.manual_seed(0)
    model.losses(random_batch())
    assert len(seen) == 6
    assert len({steps for steps, *_ in seen}) > 1
    for i in range(6):
        for j in range(i):
            assert not torch.equal(seen[i][1], seen[j][1])
            assert not torch.equal(seen[i][2][:, 0], seen[j][2][:, 0])


def test_without_a_pre_trained_model_there_is_no_loss():
    model = small_model(method="lares", phase="rpt", init="x")
    with pytest.raises(RuntimeError, match="no pre-trained model to start from; call start_from first"):
        model.losses(random_batch())
    assert model.user_embedding(random_batch()).shape == (4, 16)  # but it can be served


def test_fewer_items_than_rewarded_places():
    model = small_model(7, method="lares", phase="rpt", init="x")
    model.start_from(small_model(7, method="lares"))
    losses = model.losses(random_batch(num_items=7))
    assert model.extra_metrics["reward"] == 1.0
    assert all(math.isfinite(loss.item()) for loss in losses.values())


@pytest.mark.skipif("cpp" not in runnable_backends(), reason="the extension is not built")
@pytest.mark.parametrize("cosine", [False, True])
def test_backends_agree(cosine):
    batch = random_batch((5, 1, 9, 3, 6, 2))
    starts = [start_for(batch) * scale for scale in (1.0, -0.7, 0.3)]

    def loss(model):
        reference = model.reference.to(next(model.parameters()).dtype)
        assert reference is model.reference
        return total(fixed(model, [3, 1, 2], starts).losses(batch))

    model = post_training(rollouts=3, reward="ndcg")
    if cosine:
        scored_by_cosine(model.reference)
        scored_by_cosine(model)
    assert_backends_agree(model, loss)


def test_rows_are_those_given():
    """The loss of a batch is the mean of its rows' losses: groups are of one row."""
    batch = random_batch((5, 9, 3))
    starts = [start_for(batch) * scale for scale in (1.0, -0.7)]
    model = post_training(rollouts=2, reward="ndcg")
    together = total(fixed(model, [2, 3], starts).losses(batch))
    alone = []
    for row in range(3):
        one = replace(batch, item_ids=batch.item_ids[row : row + 1], lengths=batch.lengths[row : row + 1],
                      targets=batch.targets[row : row + 1], users=batch.users[row : row + 1])  # fmt: skip
        alone.append(total(fixed(model, [2, 3], [start[row : row + 1] for start in starts]).losses(one)))
    close(together, torch.stack(alone).mean())
