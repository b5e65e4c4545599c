"""BERT4Rec as a reasoning backbone: items read both ways, reasoning tokens only what is before them."""

import pytest
import torch

from plr.config import Config
from plr.errors import ConfigError
from tests.plr.models.helpers import random_batch, small_config, small_model
from tests.plr.models.test_encoder import input_norm, straight_line_states


def hidden_states(model, batch):
    embeddings = model.embed(model.item_table(), batch.item_ids)
    return model.encoder.encode(embeddings, batch.lengths, all_positions=True).hidden


@pytest.mark.parametrize(("backbone", "both_ways"), [("bert4rec", True), ("sasrec", False)])
def test_a_position_reads_what_follows_it(backbone, both_ways):
    model = small_model(method="base", backbone=backbone).eval()
    batch = random_batch((7,))
    before = hidden_states(model, batch)
    batch.item_ids[0, 6] = (batch.item_ids[0, 6] + 1) % 29
    after = hidden_states(model, batch)
    assert not torch.equal(after[0, 6], before[0, 6])
    for position in range(6):
        assert torch.equal(after[0, position], before[0, position]) != both_ways


@pytest.mark.parametrize(("streams", "steps"), [(1, 1), (3, 3)])
def test_reasoning_equals_recomputing_with_the_prefix_mask(streams, steps):
    """Items read all items and no token; a token reads all items and its stream's tokens up to itself."""
    model = small_model(backbone="bert4rec", streams=streams, steps=steps).eval()
    batch = random_batch()
    outcome = model.run(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        items = model.item_table()[batch.item_ids[row, :length]] + model.encoder.position.weight[:length]
        for stream in range(streams):
            inputs = input_norm(model.encoder, items)
            everything = torch.ones(length, length).bool()
            state = straight_line_states(model.encoder, inputs, everything)[-1]
            torch.testing.assert_close(outcome.fast[row], state, rtol=1e-10, atol=1e-10)
            state = state + model.trigger.weight[stream]
            for step in range(steps):
                token = input_norm(model.encoder, state + model.step_embedding.weight[step])
                inputs = torch.cat([inputs, token[None]])
                allowed = torch.ones(len(inputs), len(inputs)).tril().bool()
                allowed[:length, :length] = True
                state = straight_line_states(model.encoder, inputs, allowed)[-1]
                torch.testing.assert_close(outcome.states[row, stream, step], state, rtol=1e-10, atol=1e-10)


def test_the_kind_of_rows_is_the_methods_as_far_as_the_backbone_can():
    assert small_config(method="base").row_kind == "sequence"
    assert small_config(method="base", training_rows="prefix").row_kind == "prefix"
    assert small_config(method="plr").row_kind == "prefix"
    assert small_config(method="base", backbone="bert4rec").row_kind == "prefix"


@pytest.mark.parametrize(("backbone", "method"), [("bert4rec", "base"), ("bert4rec", "plr")])
def test_rows_that_would_show_the_targets_are_refused(backbone, method):
    message = f"training_rows must be prefix for method '{method}' on backbone '{backbone}'"
    with pytest.raises(ConfigError, match=message):
        Config(backbone=backbone, method=method, training_rows="sequence")
