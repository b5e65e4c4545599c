import pytest
import torch

from plr.models.layers import length_buckets as module
from plr.models.layers.length_buckets import length_buckets
from plr.models.methods import lares
from tests.plr.models.helpers import gradients, random_batch, small_model


def test_every_row_is_in_one_bucket_that_is_long_enough():
    lengths = torch.randint(1, 51, (301,), generator=torch.Generator().manual_seed(0)) ** 2 // 50 + 1

    buckets = length_buckets(lengths, 51)

    assert sum(buckets.rows) == 301
    assert torch.equal(buckets.order.sort().values, torch.arange(301))
    assert torch.equal(lengths[buckets.order][buckets.inverse], lengths)
    ordered = lengths[buckets.order].split(buckets.rows)
    assert [int(part.max()) for part in ordered] == buckets.longest


@pytest.mark.parametrize(
    ("lengths", "width"),
    [(torch.full((256,), 9), 9), (torch.arange(1, 51), 50), (torch.empty(0, dtype=torch.int64), 5)],
    ids=["equal lengths", "few rows", "none"],
)
def test_nothing_is_cut_where_it_saves_nothing(lengths, width):
    assert length_buckets(lengths, width) is None


@pytest.mark.parametrize("given_start", [True, False])
def test_lares_gives_the_same_states_and_gradients_in_buckets(given_start, monkeypatch):
    model = small_model(method="lares").eval()
    batch = random_batch((1, 2, 9, 3, 4, 1, 2, 1, 8, 2))
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(*batch.item_ids.shape, 16, generator=generator, dtype=torch.float64) if given_start else None

    def outcome():
        states = model.reasoning_states(model.item_table(), batch.item_ids, batch.lengths, 2, start)
        return [states.detach(), *gradients(model, states.square().sum()).values()]

    whole = outcome()
    monkeypatch.setattr(module, "_MIN_ROWS", 2)
    calls = []
    monkeypatch.setattr(
        lares.LARESRecommender,
        "_reasoning_states",
        lambda self, *inputs, original=lares.LARESRecommender._reasoning_states: (
            calls.append(inputs[0].shape[:2]) or original(self, *inputs)
        ),
    )

    parts = outcome()

    assert calls == [(2, 1), (2, 2), (2, 2), (2, 4), (2, 9)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
