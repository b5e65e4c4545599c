"""Cloze BERT4Rec: what is masked, what is predicted, where it ranks."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from plr.config import Config
from plr.data import Batch
from plr.errors import ConfigError
from plr.models.methods.cloze import whole_sequences
from plr.systems import METHODS
from tests.plr.models.helpers import random_batch, small_config, small_model


def small_cloze(**changes):
    return small_model(backbone="bert4rec-cloze", method="base", **changes)


def sequence_batch(lengths=(5, 1, 12, 3), seed=0):
    """Rows as whole sequences: the target of a position is the item at the next one."""
    batch = random_batch(lengths, seed=seed)
    beyond = torch.arange(batch.item_ids.shape[1]) >= batch.lengths[:, None] - 1
    targets = functional.pad(batch.item_ids[:, 1:], (0, 1))
    targets = torch.where(beyond, torch.randint(0, 29, targets.shape), targets)
    targets[torch.arange(targets.shape[1]) >= batch.lengths[:, None]] = -100
    return replace(batch, targets=targets)


def written_out_scores(model, items, masked):
    """Scores [V] at each masked position of one sequence, from the encoder's parts, without batching."""
    table = model.items.embedding.weight
    embeddings = torch.stack([model.mask.weight[0] if i in masked else table[item] for i, item in enumerate(items)])
    hidden = model.encoder.encode(embeddings[None], torch.tensor([len(items)]), all_positions=True).hidden[0]
    scores = {}
    for place in masked:
        state = functional.gelu(hidden[place] @ model.head.weight.T + model.head.bias)
        state = functional.layer_norm(state, state.shape, model.head_norm.weight, model.head_norm.bias, 1e-12)
        scores[place] = table @ state + model.item_bias
    return scores


def test_rows_hold_the_last_training_item():
    batch = sequence_batch((3, 1))
    items, lengths, _ = whole_sequences(batch)
    assert lengths.tolist() == [4, 2]
    assert items[0].tolist() == [*batch.item_ids[0].tolist(), int(batch.targets[0, 2])]
    assert items[1, :2].tolist() == [int(batch.item_ids[1, 0]), int(batch.targets[1, 0])]
    assert small_config(backbone="bert4rec-cloze", method="base").row_kind == "sequence"


def test_what_is_no_target_is_context_only():
    """Low-rated interactions stay in histories: at a row's end they are left out, within it they are not masked."""
    batch = sequence_batch((5, 3))
    item_ids, targets = batch.item_ids, batch.targets.clone()
    targets[0, 1] = targets[0, 3] = targets[0, 4] = targets[1, 2] = -100
    items, lengths, predictable = whole_sequences(replace(batch, targets=targets))
    assert lengths.tolist() == [4, 3]
    assert items[0].tolist() == [*item_ids[0, :3].tolist(), int(targets[0, 2]), 0, 0]
    assert items[1].tolist() == [*item_ids[1, :2].tolist(), int(targets[1, 1]), 0, 0, 0]
    assert predictable.int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    model = small_cloze(mask_probability=0.6, mask_last_probability=0.5)
    for seed in range(50):
        torch.manual_seed(seed)
        places, counts = model.draw_masked(predictable)
        for row in range(2):
            assert predictable[row, places[row, : counts[row]]].all()
    assert model.losses(replace(batch, targets=targets))["masked_item"].isfinite()


def test_the_loss_is_that_of_the_masked_items_and_they_are_hidden(monkeypatch):
    model = small_cloze(temperature=0.7, mask_last_probability=0.4).eval()
    batch = sequence_batch()
    items, lengths, predictable = whole_sequences(batch)
    torch.manual_seed(5)
    places, counts = model.draw_masked(predictable)
    torch.manual_seed(5)
    actual = model.losses(batch)["masked_item"]
    terms = []
    for row, length in enumerate(lengths.tolist()):
        masked = places[row, : counts[row]].tolist()
        scores = written_out_scores(model, items[row, :length].tolist(), masked)
        terms += [functional.cross_entropy(scores[place][None] / 0.7, items[row, place][None]) for place in masked]
    torch.testing.assert_close(actual, torch.stack(terms).mean(), rtol=1e-10, atol=1e-10)


def test_a_history_is_ranked_at_an_appended_mask():
    model = small_cloze().eval()
    batch = random_batch((4, 12, 1))  # 12 is max_length: history and mask take 13 positions
    scores = model.scores(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        items = [*batch.item_ids[row, :length].tolist(), 0]
        expected = written_out_scores(model, items, [length])[length]
        torch.testing.assert_close(scores[row], expected, rtol=1e-10, atol=1e-10)


def test_the_share_of_masked_items_is_as_asked_and_at_least_one():
    model = small_cloze(mask_probability=0.3, mask_last_probability=0.25)
    lengths = torch.tensor([2, 10, 20, 31]).repeat(4000)
    torch.manual_seed(0)
    places, counts = model.draw_masked(torch.arange(31) < lengths[:, None])
    assert places.shape[1] == round(0.3 * 31)
    last_only = (counts == 1) & (places[:, 0] == lengths - 1)
    for length, expected in ((10, 3), (20, 6), (31, 9)):
        rows = lengths == length
        assert set(counts[rows].tolist()) == {1, expected}
        # 4000 draws of probability 1/4: five standard deviations are 0.034.
        assert abs(last_only[rows].float().mean() - 0.25) < 0.034
        assert torch.equal(counts[rows] == 1, last_only[rows])
        drawn = places[rows & ~last_only][:, :expected]
        assert int(drawn.max()) < length
        assert all(len(set(row)) == expected for row in drawn.tolist())
        # Every position is masked equally often: of about 3000 · 3 draws of one in `length`, six deviations.
        share = torch.bincount(drawn.flatten(), minlength=length) / len(drawn)
        deviation = (0.3 * 0.7 / len(drawn)) ** 0.5
        assert float((share - expected / length).abs().max()) < 6 * deviation
    assert set(counts[lengths == 2].tolist()) == {1}


def test_masks_are_new_at_every_step_and_the_same_for_the_same_seed():
    model = small_cloze(mask_probability=0.5).eval()
    batch = sequence_batch()

    def loss(seed):
        torch.manual_seed(seed)
        return model.losses(batch)["masked_item"].item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_padding_has_no_influence():
    model = small_cloze().eval()
    batch = random_batch((4, 11))
    alone = replace(batch, item_ids=batch.item_ids[:1, :4], lengths=batch.lengths[:1])
    torch.testing.assert_close(model.user_embedding(batch)[:1], model.user_embedding(alone), rtol=1e-12, atol=1e-12)


def test_every_parameter_learns():
    model = small_cloze().train()
    model.losses(sequence_batch())["masked_item"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero(), name


def test_prefix_rows_and_reasoning_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="training_rows must be sequence for method 'base' on backbone 'bert4rec-cl"):
        Config(backbone="bert4rec-cloze", method="base", training_rows="prefix")
    for method in METHODS:
        if method != "base":
            with pytest.raises(ConfigError, match=f"method '{method}' does not work on.*no state of the last item"):
                Config(backbone="bert4rec-cloze", method=method)
    batch = random_batch()
    with pytest.raises(ValueError, match="needs whole-sequence rows"):
        small_cloze().losses(Batch(batch.item_ids, batch.lengths, batch.targets, batch.users))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1])
def test_a_mask_probability_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"mask_probability must be in \(0, 1\); found"):
        Config(mask_probability=value)
