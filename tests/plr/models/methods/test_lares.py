"""LARES' forward pass and pre-training against their equations, and what follows from them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from plr.models.methods.lares import random_states
from plr_kernels.dispatch.backend import runnable_backends
from tests.plr.models import published
from tests.plr.models.helpers import (
    assert_backends_agree,
    assert_equal_gradients,
    assert_every_parameter_learns,
    bidirectional,
    close,
    random_batch,
    scored_by_cosine,
    small_model,
    total,
)


def lares(**changes):
    return small_model(method="lares", **changes)


def with_positives(seed=0):
    """Four rows and their positives."""
    batch = random_batch((5, 1, 9, 3, 4, 7, 2, 6), seed=seed)
    return replace(batch, targets=batch.targets[:4].repeat(2))


def fixed(model, steps, start):
    """The model with its random step count and T_0 replaced."""
    model.sample_steps = lambda generator: steps
    model.initial_states = lambda like: start[:, : like.shape[1]].to(like.dtype)
    return model


def start_for(batch, dim=16):
    generator = torch.Generator().manual_seed(5)
    return 3 * torch.randn(*batch.item_ids.shape, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("adapter", ["mean", "concat", "gate"])
def test_states_are_those_of_the_published_equations(causal, adapter):
    model = lares(lares_adapter=adapter).eval()
    model.encoder.causal = causal
    batch = random_batch()
    start = start_for(batch)
    states = model.reasoning_states(model.item_table(), batch.item_ids, batch.lengths, 3, start)
    close(states, published.all_lares_states(model, batch.item_ids, batch.lengths, start, 3))
    own = model.evaluation_state[: batch.item_ids.shape[1]].expand_as(start)
    expected = published.all_lares_states(model, batch.item_ids, batch.lengths, own, model.options.mean_steps)
    close(model.user_embedding(batch), expected[:, -1])


def published_alignment(one, two, temperature):
    rows = torch.arange(len(one))
    there = published.cross_entropy(one @ two.T / temperature, rows)
    return (there + published.cross_entropy(two @ one.T / temperature, rows)) / 2


@pytest.mark.parametrize("causal", [True, False])
def test_pre_training_loss_and_gradients_are_those_of_the_published_equations(causal):
    batch = with_positives()
    start = start_for(batch)
    model = fixed(lares(temperature=0.7, contrastive_temperature=0.9, spread=0.2), 3, start)
    model.encoder.causal = causal
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        losses = model.losses(batch)
        states = published.all_lares_states(model, batch.item_ids, batch.lengths, start, 3)
        rows, positives = states[:4], states[4:]
        prediction = published.cross_entropy(rows[:, -1] @ model.item_table().T / 0.7, batch.targets[:4])
        trajectory = 0.1 * published_alignment(rows[:, -1], positives[:, -1], 0.9)
        close(losses["next_item"], prediction)
        close(losses["trajectory"], trajectory)
        steps = [0.5 * published_alignment(rows[:, -1], rows[:, step], 0.9) for step in range(3)]
        (step,) = [step for step in range(3) if math.isclose(steps[step].item(), losses["step"].item(), rel_tol=1e-9)]
        drawn.add(step)
    assert list(losses) == ["next_item", "trajectory", "step"]
    assert drawn == {0, 1, 2}  # one of the steps, uniformly
    assert_equal_gradients(model, total(losses), prediction + trajectory + steps[step])


def test_a_single_step_has_nothing_to_be_aligned_with():
    batch = with_positives()
    losses = fixed(lares(), 1, start_for(batch)).losses(batch)
    assert list(losses) == ["next_item", "trajectory", "step"]
    assert losses["step"] == 0


def test_terms_without_weight_are_left_out_and_no_positives_are_asked_for():
    batch = with_positives()
    assert list(lares(step_weight=0.0).losses(batch)) == ["next_item", "trajectory"]
    alone = lares(trajectory_weight=0.0)
    assert not alone.same_target_positives
    assert list(alone.losses(random_batch())) == ["next_item", "step"]
    assert lares().same_target_positives


def test_every_position_is_refined_not_the_last_alone():
    """Were only the last refined, T_0 of the positions before it would reach nothing."""
    model = lares().eval()
    batch = random_batch((9,))
    start = start_for(batch).requires_grad_()
    states = model.reasoning_states(model.item_table(), batch.item_ids, batch.lengths, 4, start)
    for step in range(4):
        (reach,) = torch.autograd.grad(states[0, step].sum(), start, retain_graph=True)
        assert reach[0].abs().sum(dim=1).min() > 0  # [L]
    assert (states[0, 3] - states[0, 2]).abs().max() > 1e-3


def test_start_states_are_truncated_normals_times_three():
    torch.manual_seed(0)
    states = random_states(torch.empty(200_000)).double()
    assert states.abs().max() <= 9
    # A standard normal cut at ±3 has variance 1 − 6 φ(3) / (2 Φ(3) − 1) = 0.97333.
    assert states.mean().abs() < 5 * 3 / math.sqrt(200_000)
    assert abs(states.std().item() / 3 - math.sqrt(0.97333)) < 0.01


def test_training_draws_new_start_states_for_every_row_and_evaluation_none():
    model = lares()
    like = torch.empty(3, 7, 16, dtype=torch.float64)
    torch.manual_seed(0)
    first, second = model.train().initial_states(like), model.initial_states(like)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    assert torch.equal(model.initial_states(like), first)
    fixed_states = model.eval().initial_states(like)
    assert torch.equal(fixed_states, model.initial_states(like))
    assert torch.equal(fixed_states[0], fixed_states[1])
    assert torch.equal(fixed_states[0], model.evaluation_state[:7])


def test_evaluation_does_not_depend_on_the_other_rows_or_on_what_was_drawn_before():
    model = lares().eval()
    batch = random_batch()
    together = model.user_embedding(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        torch.manual_seed(row)
        alone = replace(batch, item_ids=batch.item_ids[row : row + 1, :length], lengths=batch.lengths[row : row + 1])
        close(model.user_embedding(alone)[0], together[row])


def test_evaluation_states_are_a_function_of_the_seed_and_saved_with_the_weights():
    first, again, other = lares(seed=1), lares(seed=1), lares(seed=2)
    assert torch.equal(first.evaluation_state, again.evaluation_state)
    assert not torch.equal(first.evaluation_state, other.evaluation_state)
    other.load_state_dict(first.state_dict())
    batch = random_batch()
    assert torch.equal(first.eval().user_embedding(batch), other.eval().user_embedding(batch))


@pytest.mark.parametrize("mean", [1, 4])
def test_step_counts_have_the_stated_distribution(mean):
    model = lares(mean_steps=mean)
    torch.manual_seed(0)
    drawn = torch.tensor([model.sample_steps() for _ in range(20_000)])
    torch.manual_seed(0)
    assert [model.sample_steps() for _ in range(50)] == drawn[:50].tolist()
    assert drawn.min() == 1
    assert drawn.max() == 3 * mean
    # The same distribution by numerical integration over the rate: P(k) = E[Poisson(k − 1)], the tail at 3m.
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    weight /= weight.sum()
    rate = torch.exp(math.log(mean) - 0.125 + 0.5 * z)
    counts = torch.arange(3 * mean - 1, dtype=torch.float64)
    poisson = torch.exp(counts * rate[:, None].log() - rate[:, None] - torch.lgamma(counts + 1))
    p = (weight[:, None] * poisson).sum(0)
    p = torch.cat([p, 1 - p.sum(0, keepdim=True)])
    found = torch.bincount(drawn, minlength=3 * mean + 1)[1:] / len(drawn)
    assert ((found - p).abs() < 5 * (p * (1 - p) / len(drawn)).sqrt() + 1e-3).all(), (found, p)


def test_cosine_scores_reach_all_terms():
    batch = with_positives()
    start = start_for(batch)
    model = scored_by_cosine(fixed(lares(temperature=0.5), 2, start))
    states = model.reasoning_states(model.item_table(), batch.item_ids, batch.lengths, 2)
    unit, table = functional.normalize(states, dim=-1), functional.normalize(model.item_table(), dim=-1)
    losses = model.losses(batch)
    close(losses["next_item"], functional.cross_entropy(unit[:4, -1] @ table.T / 0.5, batch.targets[:4]))
    close(losses["trajectory"], 0.1 * published_alignment(unit[:4, -1], unit[4:, -1], 1.0))


@pytest.mark.parametrize("adapter", ["mean", "concat", "gate"])
def test_every_parameter_learns_on_both_kinds_of_encoder(adapter):
    for wrap in (lambda model: model, bidirectional):
        model = wrap(lares(hidden_dropout=0.1, lares_adapter=adapter)).train()
        model.sample_steps = lambda generator: 3
        assert_every_parameter_learns(model, with_positives())


@pytest.mark.skipif("cpp" not in runnable_backends(), reason="the extension is not built")
@pytest.mark.parametrize("cosine", [False, True])
def test_backends_agree(cosine):
    batch = with_positives()
    start = start_for(batch)
    model = fixed(lares(temperature=0.7, spread=0.2), 3, start)

    def loss(model):
        torch.manual_seed(0)  # of the drawn step
        return total(model.losses(batch))

    assert_backends_agree(scored_by_cosine(model) if cosine else model, loss)
