"""The encoder against an independent straight-line implementation, and its two ways to the last state."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from plr.models import SequenceEncoder
from plr.options import EncoderOptions
from tests.plr.models.helpers import random_batch, small_model


def straight_line_layer(layer, states, allowed):
    """One layer on a single sequence [L, d], written out head by head; allowed [L, L] says who reads whom."""
    dim, heads = states.shape[1], layer.heads
    size = dim // heads
    query = states @ layer.query.weight.T + layer.query.bias
    key_value = states @ layer.key_value.weight.T + layer.key_value.bias
    key, value = key_value[:, :dim], key_value[:, dim:]
    out = torch.zeros_like(states)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(states)):
            readable = [j for j in range(len(states)) if allowed[i, j]]
            scores = torch.stack([query[i, part] @ key[j, part] / math.sqrt(size) for j in readable])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            out[i, part] = sum(w * value[j, part] for w, j in zip(weights, readable, strict=True))

    def norm(x, module):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12) * module.weight + module.bias

    states = norm(states + out @ layer.attention_output.weight.T + layer.attention_output.bias, layer.attention_norm)
    inner = states @ layer.ffn_in.weight.T + layer.ffn_in.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return norm(states + inner @ layer.ffn_out.weight.T + layer.ffn_out.bias, layer.ffn_norm)


def straight_line_states(encoder, inputs, allowed):
    """All layers on one sequence of inputs [L, d] that are past the input LayerNorm."""
    states = inputs
    for layer in encoder.layers:
        states = straight_line_layer(layer, states, allowed)
    return states


def input_norm(encoder, x):
    return functional.layer_norm(x, x.shape[-1:], encoder.input_norm.weight, encoder.input_norm.bias, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_states_match_the_straight_line_implementation(causal):
    model = small_model(method="base").eval()
    model.encoder.causal = causal
    batch = random_batch()
    table = model.item_table()
    encoded = model.encoder.encode(model.embed(table, batch.item_ids), batch.lengths, all_positions=True)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.item_ids[row, :length]
        inputs = input_norm(model.encoder, table[ids] + model.encoder.position.weight[:length])
        allowed = torch.ones(length, length).tril().bool() if causal else torch.ones(length, length).bool()
        expected = straight_line_states(model.encoder, inputs, allowed)
        torch.testing.assert_close(encoded.hidden[row, :length], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(encoded.last[row], expected[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_last_state_alone_equals_the_last_of_all_positions(causal):
    model = small_model(method="base").eval()
    model.encoder.causal = causal
    batch = random_batch()
    embeddings = model.embed(model.item_table(), batch.item_ids)
    alone = model.encoder.encode(embeddings, batch.lengths)
    every = model.encoder.encode(embeddings, batch.lengths, all_positions=True)
    assert alone.hidden is None
    torch.testing.assert_close(alone.last, every.last, rtol=1e-12, atol=1e-12)


def test_padding_has_no_influence():
    model = small_model().eval()
    batch = random_batch((4, 11))
    alone = replace(batch, item_ids=batch.item_ids[:1, :4], lengths=batch.lengths[:1])
    torch.testing.assert_close(model.scores(batch)[:1], model.scores(alone), rtol=1e-12, atol=1e-12)
    garbage = batch.item_ids.clone()
    garbage[0, 4:] = 17
    changed = replace(batch, item_ids=garbage)
    torch.testing.assert_close(model.scores(changed), model.scores(batch), rtol=0, atol=0)


def test_a_sequence_longer_than_max_length_is_refused():
    encoder = SequenceEncoder(EncoderOptions(dim=4, layers=1, heads=1, ffn_dim=4, max_length=3), causal=True)
    with pytest.raises(ValueError, match="max_length=3 items; found 4"):
        encoder.encode(torch.zeros(1, 4, 4), torch.tensor([4]))
