"""The bare backbone: its loss against the formula, with and without R-Drop, on both kinds of rows."""

from dataclasses import replace

import pytest
import torch

from plr.data import CountedTargets
from plr.data.rows import IGNORED
from tests.plr.models import published
from tests.plr.models.helpers import assert_every_parameter_learns, close, random_batch, small_model


@pytest.mark.parametrize("every_position", [False, True])
def test_two_views_predict_and_are_drawn_together(every_position):
    """With R-Drop: cross-entropy of both dropout views, and half the mean symmetric divergence of the counted ones."""
    model = small_model(method="base", consistency_weight=0.3, hidden_dropout=0.4).train()
    batch = random_batch()
    if every_position:
        generator = torch.Generator().manual_seed(1)
        targets = torch.randint(0, 29, batch.item_ids.shape, generator=generator)
        targets[torch.arange(targets.shape[1]) >= batch.lengths[:, None]] = IGNORED
        batch = replace(batch, targets=targets, counted=CountedTargets.of(targets))
    torch.manual_seed(3)
    losses = model.losses(batch)
    assert list(losses) == ["next_item", "consistency"]

    torch.manual_seed(3)
    table = model.item_table()
    encoded = model.encoder.encode(
        model.embed(table, batch.item_ids.repeat(2, 1)), batch.lengths.repeat(2), all_positions=every_position
    )
    states = encoded.hidden if every_position else encoded.last
    counted = batch.targets != IGNORED
    p = [published.softmax(view[counted] @ table.T) for view in states.chunk(2)]  # [R, V] each
    targets = batch.targets[counted]
    rows = torch.arange(len(targets))
    close(losses["next_item"], -sum(torch.log(view[rows, targets]).mean() for view in p) / 2)
    symmetric = [(published.divergence(a, b) + published.divergence(b, a)) / 2 for a, b in zip(*p, strict=True)]
    close(losses["consistency"], 0.3 * torch.stack(symmetric).mean())
    assert losses["consistency"] > 1e-3


def test_without_its_weight_there_is_one_view():
    model = small_model(method="base").train()
    assert list(model.losses(random_batch())) == ["next_item"]
    assert_every_parameter_learns(model, random_batch())
