"""ReaRec-ERL against its published equations, and what follows from them."""

import pytest
import torch
from torch.nn import functional

from plr_kernels import pairwise_kl
from plr_kernels.dispatch.backend import runnable_backends
from tests.plr.models import published
from tests.plr.models.helpers import (
    assert_backends_agree,
    assert_equal_gradients,
    assert_every_parameter_learns,
    bidirectional,
    close,
    gradients,
    random_batch,
    scored_by_cosine,
    small_model,
    total,
)


def published_terms(model, batch):
    """CE of the states' mean, and −λ·mean over rows and ordered pairs of KL(p_j ‖ stop_gradient(p_i))."""
    table = model.item_table()
    states = published.all_rearec_states(model, batch)  # [B, K + 1, d]
    prediction = published.cross_entropy(states.mean(dim=1) @ table.T / model.temperature, batch.targets)
    p = published.softmax(states @ table.T / model.temperature)  # [B, K + 1, V]
    divergences = [
        published.divergence(row[j], row[i].detach())
        for row in p
        for i in range(len(row))
        for j in range(len(row))
        if i != j
    ]
    return prediction, -model.options.kl_weight * torch.stack(divergences).mean()


def erl(**changes):
    return small_model(method="erl", kl_limit=0.0, **changes)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_states_losses_and_gradients_are_those_of_the_published_equations(causal, steps):
    model = erl(steps=steps, kl_weight=0.3, temperature=0.7)
    model.encoder.causal = causal
    batch = random_batch()
    expected = published.all_rearec_states(model, batch)
    states = model.states(model.item_table(), batch.item_ids, batch.lengths)
    close(states, expected)
    close(model.user_embedding(batch), expected.mean(dim=1))

    losses = model.losses(batch)
    prediction, diversity = published_terms(model, batch)
    assert list(losses) == ["next_item", "diversity"]
    close(losses["next_item"], prediction)
    close(losses["diversity"], diversity)
    assert_equal_gradients(model, total(losses), prediction + diversity)


def test_the_mean_includes_the_state_before_any_step():
    model = erl(steps=2)
    batch = random_batch()
    fast = model.encoder.encode(model.embed(model.item_table(), batch.item_ids), batch.lengths).last
    states = model.states(model.item_table(), batch.item_ids, batch.lengths)
    close(states[:, 0], fast)
    close(model.user_embedding(batch), (fast + states[:, 1] + states[:, 2]) / 3)


def test_the_gradient_of_the_divergence_stops_at_the_reference_side():
    """Pulling on one state moves it through its own p only, not through the q it is for the others."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    pairwise_kl(states, items, detach_reference=True).backward()
    p, q = (functional.softmax(states.detach()[0, i] @ items.T, dim=-1) for i in (0, 1))
    # d KL(p ‖ q) / d logits of p = p (log p − log q − KL); each ordered pair counts half.
    kl = (p * (p / q).log()).sum()
    close(states.grad[0, 0], 0.5 * (p * ((p / q).log() - kl)) @ items)


def test_cosine_scores_reach_both_terms():
    model = scored_by_cosine(erl(temperature=0.5, kl_weight=0.2))
    batch = random_batch()
    states = model.states(model.item_table(), batch.item_ids, batch.lengths)
    unit, table = functional.normalize(states, dim=-1), functional.normalize(model.item_table(), dim=-1)
    losses = model.losses(batch)
    mean = functional.normalize(states.mean(dim=1), dim=-1)
    close(losses["next_item"], functional.cross_entropy(mean @ table.T / 0.5, batch.targets))
    close(losses["diversity"], -0.2 * pairwise_kl(unit, table, temperature=0.5))
    close(model.user_embedding(batch), mean)


def test_beyond_the_limit_and_without_weight_divergence_counts_for_nothing():
    batch = random_batch()
    assert list(erl(kl_weight=0.0).losses(batch)) == ["next_item"]
    free = -erl(kl_weight=0.1).losses(batch)["diversity"].item() / 0.1
    model = small_model(method="erl", kl_weight=0.1, kl_limit=free / 2)
    term = model.losses(batch)["diversity"]
    assert term.item() == pytest.approx(-0.1 * free / 2)
    assert not any(gradient.count_nonzero() for gradient in gradients(model, term).values())


def test_a_larger_weight_leaves_the_states_further_apart():
    batch = random_batch((6, 7, 5, 8))
    divergence = []
    for weight in (0.0, 1.0):
        model = erl(kl_weight=weight, spread=0.1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            total(model.losses(batch)).backward()
            optimizer.step()
        table = model.item_table()
        divergence.append(pairwise_kl(model.states(table, batch.item_ids, batch.lengths), table).item())
    assert divergence[0] < divergence[1], divergence


def test_every_parameter_learns_on_both_kinds_of_encoder():
    for model in (erl(hidden_dropout=0.1), bidirectional(erl(hidden_dropout=0.1))):
        assert_every_parameter_learns(model, random_batch())


@pytest.mark.skipif("cpp" not in runnable_backends(), reason="the extension is not built")
@pytest.mark.parametrize("cosine", [False, True])
def test_backends_agree(cosine):
    model = erl(steps=2, temperature=0.7, spread=0.2)
    batch = random_batch()
    assert_backends_agree(scored_by_cosine(model) if cosine else model, lambda m: total(m.losses(batch)))
