"""Sequence rows: one encoding serves the histories at all positions, which have the states of rows of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import Batch, CountedTargets
from plr.data.rows import IGNORED
from plr.errors import ConfigError
from plr.models.methods import history_buckets
from tests.plr.models.helpers import (
    assert_backends_agree,
    assert_equal_gradients,
    assert_every_parameter_learns,
    bidirectional,
    close,
    random_batch,
    scored_by_cosine,
    small_config,
    small_model,
    total,
)

METHODS = [
    {"method": "base"},
    {"method": "base", "consistency_weight": 0.3},
    {"method": "erl", "kl_limit": 0.0},
    {"method": "prl", "contrastive_weight": 0.0},
    {"method": "prl", "contrastive_weight": 0.0, "progressive_weight": 0.0, "steps": 3},
    {"method": "plr", "mixture": "states", "contrastive_weight": 0.0, "kl_limit": 0.0},
    {"method": "plr", "mixture": "states", "contrastive_weight": 0.0, "fast_state": "none", "gate": False},
    {"method": "plr", "mixture": "states", "contrastive_weight": 0.0, "fast_state": "added", "pooling": "last"},
    {"method": "plr", "streams": 2, "steps": 1},
    {"method": "plr", "fast_state": "added", "pooling": "last", "kl_weight": 0.1, "kl_limit": 0.0},
    {"method": "plr", "fast_state": "component", "consistency_weight": 0.3},
    {"method": "plr", "reasoning": False},
    {"method": "lares", "trajectory_weight": 0.0, "step_weight": 0.0},
]
CONTRASTIVE = [
    {"method": "plr", "mixture": "states", "kl_limit": 0.0},
    {"method": "plr", "contrastive_weight": 0.5, "contrastive_temperature": 0.3, "contrastive_negatives": "others"},
    {"method": "prl", "contrastive_weight": 0.5, "warmup_epochs": 0, "noise": 0.0},
    {"method": "lares", "trajectory_weight": 0.0},
]


@pytest.fixture(autouse=True, scope="module")
def _small_batches_are_cut_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_buckets, "_PASS", 2)
        yield


def named(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


def sequences(lengths=(5, 1, 9, 3, 9), ignored=((2, 1), (2, 3), (0, 0)), num_items: int = 29) -> Batch:
    """A batch with a target at each position but the padded and the ignored ones."""
    batch = random_batch(lengths, num_items)
    targets = torch.randint(0, num_items, batch.item_ids.shape, generator=torch.Generator().manual_seed(3))
    targets[torch.arange(targets.shape[1]) >= batch.lengths[:, None]] = IGNORED
    for place in ignored:
        targets[place] = IGNORED
    return Batch(batch.item_ids, batch.lengths, targets, batch.users, CountedTargets.of(targets))


def repeatable(model):
    """The model; LARES with the T_0 of evaluation and three steps, of which the first is aligned with the last."""
    if hasattr(model, "evaluation_state"):
        model.eval()
        model.sample_steps = lambda generator: torch.manual_seed(2) and 3
    return model


def prefixes(batch: Batch) -> Batch:
    """A row for each target that counts, in the order of `batch.counted`."""
    number = {}
    for row, position in (batch.targets != IGNORED).nonzero().tolist():
        number[row, position] = sum(own == row for own, _ in number)
    ends = sorted(number, key=lambda end: (number[end], end[0]))
    rows, positions = torch.tensor(ends).unbind(1)
    later = torch.arange(batch.item_ids.shape[1]) > positions[:, None]
    return Batch(
        item_ids=batch.item_ids[rows].masked_fill(later, 0),
        lengths=positions + 1,
        targets=batch.targets[rows, positions],
        users=batch.users[rows],
    )


@pytest.mark.parametrize("options", METHODS, ids=named)
def test_losses_and_gradients_are_those_of_prefix_rows(options):
    model, batch = repeatable(small_model(**options)), sequences()
    losses, expected = model.losses(batch), model.losses(prefixes(batch))
    assert losses.keys() == expected.keys()
    for name in losses:
        close(losses[name], expected[name])
    assert_equal_gradients(model, total(model.losses(batch)), total(model.losses(prefixes(batch))))


@settings(max_examples=25, deadline=None)
@given(
    options=st.sampled_from(METHODS),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    ignored=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=20),
    cosine=st.booleans(),
)
def test_states_are_those_of_prefix_rows(options, lengths, ignored, cosine):
    kept = [(row, place) for row, place in ignored if row < len(lengths) and place < lengths[row] - 1]
    model, batch = repeatable(small_model(**options)), sequences(lengths, kept)
    if cosine:
        model = scored_by_cosine(model)
    alone = prefixes(batch)
    assert torch.equal(batch.each_target, alone.targets)
    table = model.item_table()
    if options["method"] == "base":
        close(total(model.losses(batch)), total(model.losses(alone)))
    elif options["method"] == "plr":
        outcome = model._run(table, batch.item_ids, batch.lengths, batch.counted)
        expected = model._run(table, alone.item_ids, alone.lengths)
        for name in ("fast", "states", "streams", "gate_scores"):
            close(getattr(outcome, name), getattr(expected, name))
    elif options["method"] == "lares":
        states = model.reasoning_states(table, batch.item_ids, batch.lengths, 3, counted=batch.counted)
        close(states, model.reasoning_states(table, alone.item_ids, alone.lengths, 3))
    else:
        states = model.states(table, batch.item_ids, batch.lengths, counted=batch.counted)
        close(states, model.states(table, alone.item_ids, alone.lengths))


@pytest.mark.parametrize("options", CONTRASTIVE, ids=named)
def test_a_users_own_histories_are_no_negatives(options):
    """The term of Eq. 8 and of PRL's noisy copies, within the first targets of all rows, the second ones, and so on."""
    model, batch = repeatable(small_model(**options)), sequences()
    name = {"plr": "contrastive", "prl": "noise_contrastive", "lares": "step"}[options["method"]]
    found = model.losses(batch)[name]
    alone = prefixes(batch)
    sizes = batch.counted.sizes
    assert sizes == (5, 4, 4, 3, 2, 2, 2, 1, 1)  # of 4, 1, 7, 3 and 9 targets
    expected, first = 0, 0
    for size in sizes:
        own = slice(first, first + size)
        assert len(alone.users[own].unique()) == size
        group = Batch(alone.item_ids[own], alone.lengths[own], alone.targets[own], alone.users[own])
        expected = expected + size * model.losses(group)[name]
        first += size
    close(found, expected / sum(sizes))
    assert_equal_gradients(model, model.losses(batch)[name], expected / sum(sizes))


@pytest.mark.parametrize("options", [*METHODS, *CONTRASTIVE], ids=named)
def test_every_parameter_learns_with_dropout(options):
    dropout = {"input_dropout": 0.2, "hidden_dropout": 0.3, "attention_dropout": 0.3}
    model = small_model(**options, **dropout).train()
    assert_every_parameter_learns(model, sequences())


@pytest.mark.parametrize("options", [METHODS[2], METHODS[8], CONTRASTIVE[0], CONTRASTIVE[2]], ids=named)
def test_backends_agree(options):
    model = small_model(**options)
    assert_backends_agree(model, lambda model: total(model.losses(sequences())))


@pytest.mark.parametrize("options", [METHODS[2], METHODS[3], METHODS[8]], ids=named)
def test_later_items_and_padding_reach_no_history(options):
    """What stands behind a row's last target, and in the padding, may be any item."""
    model = small_model(**options)
    batch = sequences((6, 3), [(0, 4), (0, 5)])
    changed = batch.item_ids.clone()
    changed[0, 4:], changed[1, 3:] = 17, 23
    other = Batch(changed, batch.lengths, batch.targets, batch.users, batch.counted)
    close(total(model.losses(batch)), total(model.losses(other)))


@pytest.mark.parametrize("method", ["base", "erl", "prl", "plr", "lares"])
def test_an_encoder_that_reads_both_ways_is_refused(method):
    model = bidirectional(small_model(method=method, trajectory_weight=0.0))
    with pytest.raises(ValueError, match="would read the targets of whole-sequence rows"):
        model.losses(sequences())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "bert4rec", "method": "plr"}, "found 'sequence': its encoder reads both ways, and would see"),
        ({"backbone": "bert4rec", "method": "base"}, "found 'sequence': its encoder reads both ways, and would see"),
        ({"method": "lares"}, "needs trajectory_weight 0 for method 'lares': that term aligns a row with another one"),
        (
            {"method": "lares", "phase": "rpt", "init": "somewhere"},
            "found 'sequence': post-training chooses its rows by their targets",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused_with_the_reason(options, message):
    with pytest.raises(ConfigError, match=message):
        small_config(training_rows="sequence", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "plr"}, "targets_per_row is for sequence rows of a causal backbone; found 2 with prefix rows"),
        ({"method": "base", "backbone": "bert4rec-cloze"}, "found 2 with sequence rows on backbone 'bert4rec-cloze'"),
    ],
)
def test_targets_are_dealt_to_sequence_rows_alone(options, message):
    with pytest.raises(ConfigError, match=message):
        small_config(targets_per_row=2, **options)


@pytest.mark.parametrize("method", ["base", "plr", "erl", "lares"])
def test_the_context_of_windows_follows_the_length_and_is_the_same_for_all_methods(method):
    contexts = [small_config(method=method, max_length=length).min_context for length in (1, 2, 3, 4, 50)]
    assert contexts == [1, 2, 3, 3, 38]


def test_the_context_of_windows_where_it_is_not_that():
    assert small_config(method="base", min_context=1).min_context == 1
    assert small_config(method="base", backbone="bert4rec-cloze", max_length=50).min_context == 1
    with pytest.raises(ConfigError, match=r"min_context must be at most max_length=12; found 13"):
        small_config(training_rows="sequence", min_context=13)


def test_counted_targets_by_their_number():
    targets = torch.tensor([[7, IGNORED, 8], [IGNORED, IGNORED, 5], [1, 2, IGNORED]])
    counted = CountedTargets.of(targets)
    assert counted.positions.tolist() == [[0, 2], [2, 0], [0, 1]]
    assert counted.targets.tolist() == [7, 5, 1, 8, 2]
    assert counted.positions.flatten()[counted.index].tolist() == [0, 2, 0, 2, 1]
    assert counted.sizes == (3, 2)
    twice = counted.repeat(2)
    assert twice.positions.flatten()[twice.index].tolist() == [0, 2, 0, 2, 1] * 2
    assert (twice.index.tolist()[5:], twice.targets.tolist()[5:], twice.sizes) == (
        [6, 8, 10, 7, 11], [7, 5, 1, 8, 2], (3, 2, 3, 2)
    )  # fmt: skip
    none = CountedTargets.of(torch.full((2, 3), IGNORED))
    assert (none.positions.shape, none.index.shape, none.sizes) == ((2, 0), (0,), ())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "erl", "kl_limit": 0.0}, "diversity"),
        ({"method": "plr", "kl_weight": 0.1, "kl_limit": 0.0}, "diversity"),
        ({"method": "plr", "consistency_weight": 0.3, "hidden_dropout": 0.4}, "consistency"),
        ({"method": "base", "consistency_weight": 0.3, "hidden_dropout": 0.4}, "consistency"),
    ],
)
def test_divergences_of_some_histories_estimate_those_of_all(options, name, monkeypatch):
    """Of one history each: their mean over all histories is the term over all, with its weight."""
    batch = sequences()
    histories = len(batch.each_target)
    some = small_model(divergence_share=1 / histories, **options).train()
    whole = small_model(**options).train()

    def term(model, first):
        torch.manual_seed(3)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda count, **_: (torch.arange(count) + first) % count)
            return model.losses(batch)[name]

    expected = term(whole, 0)
    found = [term(some, first) for first in range(histories)]
    close(torch.stack(found).mean(), expected)
    assert torch.stack(found).std() > 1e-3 * expected.abs()
    with pytest.raises(ConfigError, match=r"divergence_share must be in \(0, 1\]; found 0"):
        small_config(divergence_share=0.0)


def test_each_step_draws_its_own_histories():
    model = small_model(method="erl", divergence_share=0.2)
    torch.manual_seed(0)
    one, two = (float(model.losses(sequences())["diversity"].detach()) for _ in range(2))
    torch.manual_seed(0)
    assert float(model.losses(sequences())["diversity"].detach()) == one != two
