"""PLR's equations as printed (mixture states), one by one, in float64."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch.nn import functional

from plr.data import CountedTargets
from plr.models import build_model
from plr_kernels import info_nce, pairwise_kl
from tests.plr.models import helpers, published
from tests.plr.models.helpers import assert_equal_gradients, bidirectional, random_batch, scored_by_cosine, total
from tests.plr.models.test_encoder import input_norm, straight_line_states


def small_config(**changes):
    return helpers.small_config(**{"mixture": "states", "streams": 2, **changes})


def small_model(*sizes, **changes):
    return helpers.small_model(*sizes, **{"mixture": "states", "streams": 2, **changes})


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("streams", "steps"), [(1, 1), (2, 2), (3, 4)])
def test_cached_reasoning_equals_recomputing_the_whole_sequence(streams, steps):
    """Eq. 3 to 5: every stream alone is the causal encoder run over [items; its own step inputs]."""
    model = small_model(streams=streams, steps=steps).eval()
    batch = random_batch()
    outcome = model.run(batch)
    table = model.item_table()
    for row, length in enumerate(batch.lengths.tolist()):
        items = table[batch.item_ids[row, :length]] + model.encoder.position.weight[:length]
        for stream in range(streams):
            state = outcome.fast[row] + model.trigger.weight[stream]
            inputs = input_norm(model.encoder, items)
            for step in range(steps):
                token = input_norm(model.encoder, state + model.step_embedding.weight[step])
                inputs = torch.cat([inputs, token[None]])
                causal = torch.ones(len(inputs), len(inputs)).tril().bool()
                state = straight_line_states(model.encoder, inputs, causal)[-1]
                close(outcome.states[row, stream, step], state)


def test_streams_are_isolated():
    model = small_model(streams=3, steps=3).eval()
    batch = random_batch()
    before = model.run(batch)
    with torch.no_grad():
        model.trigger.weight[0] += 1.0
    after = model.run(batch)
    assert not torch.equal(after.states[:, 0], before.states[:, 0])
    assert torch.equal(after.states[:, 1:], before.states[:, 1:])
    assert torch.equal(after.fast, before.fast)


def test_streams_are_isolated_in_the_gradient():
    model = small_model(streams=3, steps=2)
    model.run(random_batch()).states[:, 1].sum().backward()
    assert torch.count_nonzero(model.trigger.weight.grad[1])
    assert not torch.count_nonzero(model.trigger.weight.grad[[0, 2]])


def test_pooling_gate_and_both_representations():
    """Eq. 6, 9 and 10."""
    model = small_model(streams=3, steps=2).eval()
    outcome = model.run(random_batch())
    close(outcome.streams, (outcome.states[:, :, 0] + outcome.states[:, :, 1]) / 2)
    logits = outcome.fast @ model.gate.weight.T + model.gate.bias
    close(outcome.gates, torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True))
    close(outcome.slow, sum(outcome.gates[:, m, None] * outcome.streams[:, m] for m in range(3)))
    close(outcome.final, outcome.fast + outcome.slow)


def test_training_predicts_from_the_slow_state_and_inference_ranks_with_both():
    model = small_model(temperature=0.7)
    batch = random_batch()
    outcome, table = model.run(batch), model.item_table()
    expected = functional.cross_entropy(outcome.slow @ table.T / 0.7, batch.targets)
    close(model.losses(batch)["next_item"], expected)
    other = functional.cross_entropy(outcome.final @ table.T / 0.7, batch.targets)
    assert abs(other - expected) > 1e-3
    close(model.eval().user_embedding(batch), outcome.fast + outcome.slow)
    close(model.scores(batch), (outcome.fast + outcome.slow) @ table.T)


def test_loss_terms_and_their_signs():
    """Eq. 11 with the divergence subtracted."""
    model = small_model(kl_weight=0.3, kl_limit=0.0, contrastive_weight=0.8, contrastive_temperature=0.5)
    batch = random_batch()
    losses = model.losses(batch)
    assert list(losses) == ["next_item", "contrastive", "diversity"]
    states = model.run(batch).states.flatten(1, 2)  # [B, M·T, d]
    # Without dropout both views are equal.
    close(losses["contrastive"], 0.8 * info_nce(states.transpose(0, 1), states.transpose(0, 1), temperature=0.5))
    divergence = pairwise_kl(states, model.item_table())
    assert divergence > 0
    close(losses["diversity"], -0.3 * divergence)


@pytest.mark.parametrize("wrap", [lambda model: model, bidirectional, scored_by_cosine])
@pytest.mark.parametrize("mixture", ["states", "distributions"])
@pytest.mark.parametrize(("streams", "steps"), [(2, 2), (3, 1), (1, 3)])
def test_loss_gradients_and_scores_are_those_of_the_published_equations(streams, steps, mixture, wrap):
    """All of Eq. 1 to 11 in one piece, with no operator and no model code of the project: what is minimised, by what
    gradient, and what ranks."""
    model = wrap(
        small_model(
            streams=streams, steps=steps, mixture=mixture, temperature=0.9, kl_weight=0.3, kl_limit=0.0,
            contrastive_weight=0.7, contrastive_temperature=0.6, spread=0.3,
        )
    )  # fmt: skip
    batch = random_batch()
    fast, states = published.all_plr_states(model, batch)

    def unit(vectors):
        return vectors / (vectors**2).sum(-1, keepdim=True).sqrt()

    as_scored = unit if model.items.cosine else lambda vectors: vectors
    items = as_scored(model.item_table())
    pooled = states.sum(dim=2) / steps  # Eq. 6
    gates = published.softmax(fast @ model.gate.weight.T + model.gate.bias)[:, :, None]
    if mixture == "states":
        slow = (gates * pooled).sum(dim=1)  # Eq. 9
        expected = published.cross_entropy(as_scored(slow) @ items.T / 0.9, batch.targets)
        scores = as_scored(fast + slow) @ items.T  # Eq. 10
    else:
        p = (gates * published.softmax(as_scored(pooled) @ items.T / 0.9)).sum(dim=1)
        expected = -torch.log(p[torch.arange(4), batch.targets]).mean()
        scores = torch.log(p)
    every = states.flatten(1, 2)  # [B, M·T, d]
    for one in unit(every).unbind(1):  # Eq. 8: without dropout both views are equal, and so are both directions
        expected = expected + 0.7 * 2 * published.cross_entropy(one @ one.T / 0.6, torch.arange(4)) / every.shape[1]
    p = published.softmax(as_scored(every) @ items.T / 0.9)
    pairs = [(b, i, j) for b in range(4) for i, j in permutations(range(every.shape[1]), 2)]
    for b, i, j in pairs:  # Eq. 7, subtracted
        expected = expected - 0.3 * published.divergence(p[b, i], p[b, j]) / len(pairs)
    loss = total(model.losses(batch))
    close(loss, expected)
    assert_equal_gradients(model, loss, expected)
    close(model.eval().scores(batch), scores)


@pytest.mark.parametrize("rows", ["prefix", "sequence"])
def test_false_negatives_are_histories_of_the_same_user_or_with_the_same_target(rows):
    """Without dropout both views are equal."""
    model = small_model(contrastive_weight=0.8, contrastive_negatives="others", streams=2, steps=2)
    batch = random_batch((3, 5, 2, 4, 5))
    users = torch.tensor([0, 1, 0, 2, 3])
    if rows == "prefix":
        targets = torch.tensor([7, 8, 9, 8, 6])  # rows 0 and 2 are of one user, 1 and 3 have one target
        batch, sizes, alike = replace(batch, targets=targets, users=users), (5,), {(0, 2), (1, 3)}
    else:
        targets = torch.full((5, 5), -100)
        targets[:, 0] = torch.tensor([7, 8, 9, 8, 6])
        targets[:4, 1] = torch.tensor([3, 3, 4, 5])  # second targets of rows 0 and 1 are alike, 0 and 2 one user's
        batch = replace(batch, targets=targets, users=users, counted=CountedTargets.of(targets))
        sizes, alike = (5, 4), {(0, 2), (1, 3), (5, 6), (5, 7)}
    states = model._run(model.item_table(), batch.item_ids, batch.lengths, batch.counted).states.flatten(1, 2)
    expected, first = 0.0, 0
    for size in sizes:
        for unit in torch.nn.functional.normalize(states[first : first + size], dim=2).unbind(1):  # [size, d]
            for i in range(size):
                counts = [j for j in range(size) if not {(first + i, first + j), (first + j, first + i)} & alike]
                expected -= 2 * torch.log_softmax(unit[i] @ unit[counts].T, dim=0)[counts.index(i)]
        first += size
    close(model.losses(batch)["contrastive"], 0.8 * expected / (4 * first))


def test_beyond_the_limit_divergence_is_no_longer_rewarded():
    batch = random_batch()
    free = small_model(kl_limit=0.0, contrastive_weight=0.0)
    divergence = pairwise_kl(free.run(batch).states.flatten(1, 2), free.item_table()).item()
    for limit, reward in ((0.0, divergence), (divergence * 2, divergence), (divergence / 2, divergence / 2)):
        model = small_model(kl_limit=limit, contrastive_weight=0.0)
        term = model.losses(batch)["diversity"]
        assert term.item() == pytest.approx(-0.1 * reward, rel=1e-9)
        term.backward()
        assert bool(model.trigger.weight.grad.count_nonzero()) == (reward == divergence)


def test_trigger_std_scales_the_triggers_and_nothing_else():
    weights = []
    for std in (0.02, 1.0):
        torch.manual_seed(5)
        weights.append(build_model(small_config(trigger_std=std), 29).double().state_dict())
    small, large = weights
    torch.testing.assert_close(large.pop("trigger.weight"), 50 * small.pop("trigger.weight"), rtol=1e-6, atol=0)
    assert all(torch.equal(weight, large[name]) for name, weight in small.items())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_two_views_are_the_same_rows_under_two_dropout_masks(dropout, monkeypatch):
    """And divergence and prediction use the first view."""
    seen = {}

    def spy(name, function):
        def call(*arguments, **options):
            seen[name] = arguments
            return function(*arguments, **options)

        monkeypatch.setattr(f"plr.models.methods.plr.{name}", call)

    for name, function in (("info_nce", info_nce), ("pairwise_kl", pairwise_kl)):
        spy(name, function)
    model = small_model(hidden_dropout=dropout, attention_dropout=dropout, streams=3, steps=2).train()
    model.losses(random_batch())
    first, second = seen["info_nce"]
    assert first.shape == second.shape == (6, 4, 16)
    assert torch.allclose(first, second, rtol=1e-12, atol=1e-12) == (dropout == 0.0)
    assert torch.equal(seen["pairwise_kl"][0], first.transpose(0, 1))


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"kl_weight": 0.0}, ["next_item", "contrastive"]),
        ({"contrastive_weight": 0.0}, ["next_item", "diversity"]),
        ({"kl_weight": 0.0, "contrastive_weight": 0.0, "streams": 1, "steps": 1}, ["next_item"]),
    ],
)
def test_ablations_leave_their_term_out(changes, terms):
    assert list(small_model(**changes).losses(random_batch())) == terms


def test_without_the_gate_streams_are_averaged():
    model = small_model(gate=False, streams=3)
    outcome = model.run(random_batch())
    assert model.gate is None
    close(outcome.slow, outcome.streams.mean(dim=1))


def test_one_state_has_nobody_to_differ_from():
    losses = small_model(streams=1, steps=1).losses(random_batch())
    assert losses["diversity"] == 0


def test_attention_can_be_asked_for_and_is_the_one_that_was_used():
    model = small_model(streams=2, steps=3).eval()
    batch = random_batch()
    plain, inspected = model.run(batch), model.run(batch, with_attention=True)
    assert plain.attention is None
    assert torch.equal(plain.states, inspected.states)
    longest = batch.item_ids.shape[1]
    for step, layers in enumerate(inspected.attention):
        assert len(layers) == 2
        for weights in layers:
            assert weights.shape == (4, 2, 2, longest + step + 1)
            close(weights.sum(-1), torch.ones(4, 2, 2, dtype=torch.float64))
            padded = torch.arange(longest) >= batch.lengths[:, None]
            assert not weights[..., :longest].transpose(1, 3)[padded].count_nonzero()


def test_every_parameter_learns():
    model = small_model(hidden_dropout=0.1, attention_dropout=0.1).train()
    torch.stack(list(model.losses(random_batch()).values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name != "encoder.position.weight":
            assert parameter.grad.count_nonzero(), name


def test_raising_lambda_raises_the_divergence_between_states():
    """The sign is right: descending the loss with a larger λ leaves the states further apart."""
    batch = random_batch((6, 7, 5, 8))
    divergence = []
    for kl_weight in (0.0, 1.0):
        model = small_model(kl_weight=kl_weight, kl_limit=0.0, contrastive_weight=0.0, spread=0.1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            torch.stack(list(model.losses(batch).values())).sum().backward()
            optimizer.step()
        states = model.run(batch).states.flatten(1, 2)
        divergence.append(pairwise_kl(states, model.item_table()).item())
    assert divergence[0] < divergence[1], divergence
