"""ReaRec-PRL against its published equations, and what follows from them."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

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


def prl(epoch=2, **changes):
    model = small_model(method="prl", **changes)
    model.epoch = epoch
    return model


def published_terms(model, batch, seed):
    """The three terms; the noise is drawn as the model draws it: one normal [B, 1, d] per step."""
    table, tau, options = model.item_table(), model.temperature, model.options
    clean = published.all_rearec_states(model, batch)  # [B, K + 1, d]
    prediction = published.cross_entropy(clean[:, -1] @ table.T / tau, batch.targets)

    earlier = []
    for t in range(options.steps):
        temperature = tau * options.temperature_scale ** (options.steps - t)
        earlier.append(published.cross_entropy(clean[:, t] @ table.T / temperature, batch.targets))

    torch.manual_seed(seed)
    noise = [torch.randn(len(clean), 1, clean.shape[2], dtype=clean.dtype)[:, 0] for _ in range(options.steps)]
    token_inputs = torch.stack(
        [clean[:, t] + model.step_embedding.weight[t] + options.noise * noise[t] for t in range(options.steps)], dim=1
    )
    noisy = published.all_rearec_states(model, batch, token_inputs)
    contrastive = [
        published.cross_entropy(noisy[:, t] @ clean[:, t].T / tau, torch.arange(len(clean)))
        for t in range(1, options.steps + 1)
    ]
    return {
        "next_item": prediction,
        "progressive": options.progressive_weight * torch.stack(earlier).mean(),
        "noise_contrastive": options.contrastive_weight * torch.stack(contrastive).mean(),
    }


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_states_losses_and_gradients_are_those_of_the_published_equations(causal, steps):
    model = prl(steps=steps, temperature=0.7, progressive_weight=0.9, contrastive_weight=0.4, noise=0.3)
    model.encoder.causal = causal
    batch = random_batch()
    close(model.user_embedding(batch), published.all_rearec_states(model, batch)[:, -1])

    torch.manual_seed(3)
    losses = model.losses(batch)
    expected = published_terms(model, batch, seed=3)
    assert list(losses) == list(expected)
    for name in losses:
        close(losses[name], expected[name])
    assert_equal_gradients(model, total(losses), total(expected))


def test_temperatures_fall_to_that_of_the_last_step():
    assert prl(steps=3, temperature=0.5, temperature_scale=2.0).temperatures() == [4.0, 2.0, 1.0, 0.5]
    for scale in (1.5, 5.0):
        temperatures = prl(steps=4, temperature_scale=scale).temperatures()
        assert all(high > low for high, low in pairwise(temperatures))
    assert prl(steps=2, temperature_scale=1.0, temperature=0.07).temperatures() == [0.07] * 3


@pytest.mark.parametrize(("epoch", "warmup", "active"), [(0, 2, False), (1, 2, False), (2, 2, True), (0, 0, True)])
def test_the_noisy_copy_comes_after_the_warm_up(epoch, warmup, active):
    losses = prl(epoch, warmup_epochs=warmup).losses(random_batch())
    assert ("noise_contrastive" in losses) == active


def test_weights_of_zero_leave_their_term_out_and_the_rest_as_it_was():
    batch = random_batch()
    everything = prl().losses(batch)
    assert list(prl(contrastive_weight=0.0).losses(batch)) == ["next_item", "progressive"]
    bare = prl(contrastive_weight=0.0, progressive_weight=0.0).losses(batch)
    assert list(bare) == ["next_item"]
    close(bare["next_item"], everything["next_item"])


def test_the_copy_is_noisy_but_does_not_touch_the_clean_rows():
    quiet, loud = prl(noise=0.0, steps=3), prl(noise=1.0, steps=3)
    batch = random_batch()
    before, after = quiet.losses(batch), loud.losses(batch)
    assert torch.equal(before["next_item"], after["next_item"])
    assert torch.equal(before["progressive"], after["progressive"])
    assert (before["noise_contrastive"] - after["noise_contrastive"]).abs() > 1e-6


def test_noise_moves_the_step_after_it_only_through_the_cache():
    """Step t + 1 of the copy starts from the clean h_t: its input keeps nothing of the noisy one."""
    model = prl(steps=2)
    clean = torch.randn(3, 1, 16, dtype=torch.float64)
    for garbage in (0.0, 1e6):
        torch.manual_seed(1)
        inputs = model._noisy_inputs(None, clean)(None)(1, torch.cat([clean, clean + garbage]))
        close(inputs[:3], clean + model.step_embedding.weight[1])
        assert (inputs[3:] - inputs[:3]).abs().max() < 0.01 * 6


def test_cosine_scores_reach_all_terms():
    model = scored_by_cosine(prl(temperature=0.5, steps=2, noise=0.0))
    batch = random_batch()
    states = model.states(model.item_table(), batch.item_ids, batch.lengths)
    unit, table = functional.normalize(states, dim=-1), functional.normalize(model.item_table(), dim=-1)
    losses = model.losses(batch)
    close(losses["next_item"], functional.cross_entropy(unit[:, 2] @ table.T / 0.5, batch.targets))
    earlier = [functional.cross_entropy(unit[:, t] @ table.T / (0.5 * 5.0 ** (2 - t)), batch.targets) for t in (0, 1)]
    close(losses["progressive"], sum(earlier) / 2)
    own = torch.arange(4)
    pairs = [functional.cross_entropy(unit[:, t] @ unit[:, t].T / 0.5, own) for t in (1, 2)]
    close(losses["noise_contrastive"], sum(pairs) / 2)  # without noise and dropout the copy is the row


def test_every_parameter_learns_on_both_kinds_of_encoder():
    for model in (prl(hidden_dropout=0.1), bidirectional(prl(hidden_dropout=0.1))):
        assert_every_parameter_learns(model, random_batch())


@pytest.mark.skipif("cpp" not in runnable_backends(), reason="the extension is not built")
@pytest.mark.parametrize("cosine", [False, True])
def test_backends_agree(cosine):
    model = prl(steps=2, temperature=0.7, noise=0.0, spread=0.2)
    batch = random_batch()
    assert_backends_agree(scored_by_cosine(model) if cosine else model, lambda m: total(m.losses(batch)))
