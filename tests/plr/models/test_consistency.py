"""R-Drop in one sweep of the items: when it is taken, and that its terms and gradients are those of two."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plr.data import Share
from plr.models import consistency
from plr.models.methods import base, plr
from plr.models.sampled_items import SampledItems
from tests.plr.models.helpers import random_batch, small_model

METHODS = [
    {"method": "base", "consistency_weight": 0.3},
    {"method": "plr", "streams": 3, "consistency_weight": 0.3},
    {"method": "plr", "fast_state": "component", "consistency_weight": 0.3},
    {"method": "plr", "mixture": "states", "consistency_weight": 0.3},
]


@pytest.mark.parametrize("given", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_terms_and_gradients_are_those_of_two_sweeps(given, dtype, monkeypatch):
    """With the same random draws."""
    model = small_model(**given, hidden_dropout=0.4).to(dtype).train()
    batch = random_batch()

    def run():
        model.zero_grad()
        torch.manual_seed(3)
        losses = model.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        state = torch.random.get_rng_state()
        return losses, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}, state

    losses, gradients, state = run()
    calls = []
    with monkeypatch.context() as patch:
        for module in (base, plr):
            patch.setattr(module, "takes_one_sweep", lambda *_: calls.append(1))
        expected, expected_gradients, expected_state = run()
    assert calls
    assert torch.equal(state, expected_state)
    assert list(losses) == list(expected)
    rounding = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    for name in expected:
        torch.testing.assert_close(losses[name].detach(), expected[name].detach(), **rounding, msg=name)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, **rounding, msg=name)


def test_one_sweep_takes_all_items_and_all_histories_of_one_process():
    model, batch = small_model(method="base", consistency_weight=0.3), random_batch()
    table = model.item_table()
    assert consistency.takes_one_sweep(model.options, table, None)
    assert not consistency.takes_one_sweep(replace(model.options, divergence_share=0.5), table, None)
    sampled = SampledItems(table, torch.arange(3), None, "softmax", 1.0)
    assert not consistency.takes_one_sweep(model.options, sampled, None)
    share = Share(lambda _: batch, torch.arange(4), 4, 0, 2)
    assert not consistency.takes_one_sweep(model.options, table, share)
