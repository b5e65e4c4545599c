"""ReaRec, LARES and PLR written out from their equations: left-padded as ReaRec is, one row at a time, plain logits.

Nothing of plr.models runs here: its modules are read for their weights only.
"""

import math

import torch


def layer_norm(states, norm):
    centred = states - states.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12) * norm.weight + norm.bias


def linear(states, module):
    return states @ module.weight.T + module.bias


def transformer_layer(layer, states, readable):
    """One post-norm layer on one sequence [S, d]; readable [S, S] says which position (row) reads which (column)."""
    size = states.shape[1] // layer.heads
    query = linear(states, layer.query)
    key, value = linear(states, layer.key_value).split(states.shape[1], dim=1)
    heads = []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        scores = scores + torch.where(readable, 0.0, -1e10)  # as the public code masks
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ value[:, part])
    states = layer_norm(states + linear(torch.cat(heads, dim=1), layer.attention_output), layer.attention_norm)
    inner = linear(states, layer.ffn_in)
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return layer_norm(states + linear(inner, layer.ffn_out), layer.ffn_norm)


def left_padded(item_ids, length, width):
    """The row's items behind width − length padded places, and each place's position number, from the oldest item."""
    padding = width - length
    ids = torch.cat([torch.zeros(padding, dtype=torch.int64), item_ids[:length]])
    positions = torch.arange(width) - padding  # negative: padding
    return ids, positions


def readable_by(positions, tokens, causal):
    """[S, S] for the left-padded items and then `tokens` reasoning tokens, which are causal in any case."""
    items = len(positions)
    size = items + tokens
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None, :]
    real = torch.cat([positions >= 0, torch.ones(tokens, dtype=torch.bool)])
    earlier = columns <= rows
    if not causal:
        earlier = earlier | ((rows < items) & (columns < items))
    return earlier & real


def sequence_input(model, table, item_ids, length, width):
    """The items' inputs behind the input LayerNorm, [width, d], and their position numbers."""
    ids, positions = left_padded(item_ids, length, width)
    embedded = table[ids] + model.encoder.position.weight[positions.clamp(min=0)]
    return layer_norm(embedded, model.encoder.input_norm), positions


def rearec_states(model, table, item_ids, length, width, token_inputs=None):
    """h_0..h_K [K + 1, d] of one row: before every step the whole sequence is computed anew, without any cache.

    token_inputs [K, d] are the steps' inputs before the LayerNorm where they do not come from the row's own states.
    """
    inputs, positions = sequence_input(model, table, item_ids, length, width)
    states = []
    for step in range(model.options.steps + 1):
        if step:
            token = states[-1] + model.step_embedding.weight[step - 1]
            if token_inputs is not None:
                token = token_inputs[step - 1]
            inputs = torch.cat([inputs, layer_norm(token, model.encoder.input_norm)[None]])
        hidden = inputs
        for layer in model.encoder.layers:
            hidden = transformer_layer(layer, hidden, readable_by(positions, step, model.encoder.causal))
        states.append(hidden[-1])
    return torch.stack(states)


def all_rearec_states(model, batch, token_inputs=None):
    """[B, K + 1, d]; token_inputs [B, K, d] as above."""
    table = model.item_table()
    width = model.encoder.max_length
    return torch.stack(
        [
            rearec_states(
                model, table, batch.item_ids[row], length, width, None if token_inputs is None else token_inputs[row]
            )
            for row, length in enumerate(batch.lengths.tolist())
        ]
    )


def plr_states(model, table, item_ids, length, width):
    """h_0 [d] and h_{t,m} [M, T, d] of one row (Eq. 2 to 5): each stream by itself, all computed anew at every step."""
    items, positions = sequence_input(model, table, item_ids, length, width)

    def last_state(inputs, tokens):
        for layer in model.encoder.layers:
            inputs = transformer_layer(layer, inputs, readable_by(positions, tokens, model.encoder.causal))
        return inputs[-1]

    fast, streams = last_state(items, 0), []
    for trigger in model.trigger.weight:
        state, inputs, states = fast + trigger, items, []
        for step in range(model.options.steps):
            token = layer_norm(state + model.step_embedding.weight[step], model.encoder.input_norm)
            inputs = torch.cat([inputs, token[None]])
            state = last_state(inputs, step + 1)
            states.append(state)
        streams.append(torch.stack(states))
    return fast, torch.stack(streams)


def all_plr_states(model, batch):
    """h_0 [B, d] and h_{t,m} [B, M, T, d]."""
    table, width = model.item_table(), model.encoder.max_length
    rows = zip(batch.item_ids, batch.lengths.tolist(), strict=True)
    fast, states = zip(*(plr_states(model, table, item_ids, length, width) for item_ids, length in rows), strict=True)
    return torch.stack(fast), torch.stack(states)


def softmax(logits):
    powers = torch.exp(logits - logits.max(-1, keepdim=True).values)
    return powers / powers.sum(-1, keepdim=True)


def cross_entropy(logits, targets):
    """The mean of −log softmax(logits)[target] over rows [R, V]."""
    return -torch.log(softmax(logits)[torch.arange(len(targets)), targets]).mean()


def divergence(p, q):
    """KL(p ‖ q) of two distributions [V]."""
    return (p * (torch.log(p) - torch.log(q))).sum()


def lares_states(model, table, item_ids, length, start, steps):
    """The last position's state after each step [steps, d] of one row; start is T_0 [length, d]."""
    positions = torch.arange(length)
    readable = readable_by(positions, 0, model.encoder.causal)
    hidden, _ = sequence_input(model, table, item_ids, length, length)
    for layer in model.encoder.layers:
        hidden = transformer_layer(layer, hidden, readable)
    states, outputs = start, []
    for _ in range(steps):
        if model.adapter.kind == "mean":
            states = (states + hidden) / 2
        elif model.adapter.kind == "concat":
            states = linear(torch.cat([states, hidden], dim=1), model.adapter.linear)
        else:
            gate = 1 / (1 + torch.exp(-model.adapter.weight))
            states = gate * states + (1 - gate) * hidden
        states = layer_norm(states, model.core_norm)
        for layer in model.core:
            states = transformer_layer(layer, states, readable)
        outputs.append(states[-1])
    return torch.stack(outputs)


def all_lares_states(model, item_ids, lengths, start, steps):
    """[B, steps, d]; start is T_0 [B, L, d]."""
    table = model.item_table()
    return torch.stack(
        [
            lares_states(model, table, item_ids[row], length, start[row, :length], steps)
            for row, length in enumerate(lengths.tolist())
        ]
    )
