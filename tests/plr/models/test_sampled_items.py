"""Losses on sampled items: who is drawn, how often, and that with all items drawn once each is the loss over all."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import plr_kernels
from plr.data import Batch, CountedTargets
from plr.models.recommender import numbered_anew
from plr.models.sampled_items import (
    ItemSampler,
    SampledItems,
    linear_cross_entropy,
    pairwise_kl,
    positive_power,
    starting_score,
)
from plr.options import RecommenderOptions
from tests.plr.models.helpers import assert_equal_gradients, close, random_batch, small_model, total

COUNTS = torch.tensor([5, 0, 1, 14, 0, 20, 9])
TARGETS = torch.tensor([5, 3, 3, 0, 5, 6])


def options(**changes) -> RecommenderOptions:
    return RecommenderOptions(**{"loss": "sampled_softmax", "negatives": 4, **changes})


@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in_batch", "mixed"])
def test_log_q_is_the_logarithm_of_how_often_an_item_is_drawn(sampler):
    generator = torch.Generator().manual_seed(0)
    drawn_by = ItemSampler(options(sampler=sampler), COUNTS)
    steps, counts, expected = 1_000, torch.zeros(7), torch.zeros(7)
    for step in range(steps):
        drawn_by.seed = step
        # Targets come as often as they are targets: of these the first is the row's own, and no draw.
        targets = torch.multinomial(COUNTS.float(), 6, replacement=True, generator=generator)
        items, log_q = drawn_by.draw(targets)
        own = 0
        if sampler in ("in_batch", "mixed"):  # take it out again
            generator_of_draw = torch.Generator().manual_seed(step)
            if sampler == "mixed":
                torch.randint(7, (4,), generator=generator_of_draw)
            own = int((torch.randperm(6, generator=generator_of_draw)[:4] == 0).any())
        counts += torch.bincount(items, minlength=7)
        counts[targets[0]] -= own
        expected[items] = log_q.exp()
    found = counts / steps
    seen = counts > 0
    assert seen.tolist() == ((COUNTS > 0) | (sampler in ("uniform", "mixed"))).tolist()
    # Five standard deviations of a Poisson count, which no draw here exceeds.
    assert (found - expected)[seen].abs().lt(5 * (expected[seen] / steps).sqrt()).all(), (found, expected)


def test_what_is_drawn_is_of_the_seed_alone():
    drawn_by = ItemSampler(options(sampler="mixed"), COUNTS)
    drawn_by.seed = 3
    first = drawn_by.draw(TARGETS)
    torch.manual_seed(99)
    torch.rand(5)
    again = drawn_by.draw(TARGETS)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn_by.seed = 4
    assert not torch.equal(first[0], drawn_by.draw(TARGETS)[0])


def test_in_batch_takes_all_targets_where_there_are_no_more_than_negatives():
    items, _ = ItemSampler(options(sampler="in_batch", negatives=6), COUNTS).draw(TARGETS)
    assert items.sort().values.tolist() == TARGETS.sort().values.tolist()
    items, _ = ItemSampler(options(sampler="in_batch", negatives=2), COUNTS).draw(TARGETS)
    assert len(items) == 2


def test_other_losses_and_logq_false_have_no_correction():
    assert ItemSampler(options(logq=False), COUNTS).draw(TARGETS)[1] is None
    assert ItemSampler(options(loss="bce"), COUNTS).draw(TARGETS)[1] is None


def test_the_power_of_gbce_is_that_of_its_paper():
    given = options(loss="gbce", gbce_t=0.75)
    alpha = 4 / (101 - 1)
    assert math.isclose(positive_power(given, 4, 101), alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha))
    assert positive_power(replace(given, gbce_t=0.0), 4, 101) == 1  # bce
    assert math.isclose(positive_power(replace(given, gbce_t=1.0), 4, 101), alpha)
    assert positive_power(options(loss="bce"), 4, 101) == 1


@pytest.mark.parametrize(("loss", "power"), [("bce", 1.0), ("gbce", 0.3)])
def test_scores_begin_where_a_model_that_knows_nothing_is_best(loss, power):
    negatives = 50
    score = torch.tensor(starting_score(power, negatives), dtype=torch.float64, requires_grad=True)
    value = -(power * functional.logsigmoid(score) + negatives * functional.logsigmoid(-score))
    (slope,) = torch.autograd.grad(value, score)
    assert slope.abs() < 1e-12
    model = small_model(method="base", loss=loss, negatives=6)
    model.sampler = ItemSampler(model.options, torch.ones(29, dtype=torch.int64))
    *_, items = model.step_items(random_batch())
    assert math.isclose(items.offset, starting_score(items.positive_power, 6))


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_what_is_added_to_scores_is_added_behind_the_temperature(temperature):
    torch.manual_seed(0)
    states, table = torch.randn(3, 5).double(), torch.randn(9, 5).double()
    targets, drawn, offset = torch.tensor([2, 0, 7]), torch.tensor([1, 4, 8]), -1.5
    items = SampledItems(table, drawn, None, "bce", 0.4, offset)
    loss = linear_cross_entropy(states, items, targets, temperature=temperature, reduction="none")
    scores = states @ table.T / temperature + offset
    positive = functional.logsigmoid(scores.gather(1, targets[:, None])).squeeze(1)
    expected = -(0.4 * positive + functional.logsigmoid(-scores[:, drawn]).sum(dim=1)) / (len(drawn) + 1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


class EveryItem:
    """In place of the sampler: all items once, each expected once. Over these a loss is that over all items."""

    def __init__(self, num_items: int):
        self.num_items = num_items

    def draw(self, targets):
        return torch.arange(self.num_items), torch.zeros(self.num_items, dtype=torch.float64)


def counted_batch() -> Batch:
    """Two sequences, a target at most of their positions."""
    batch = random_batch((6, 3))
    targets = torch.full((2, 6), -100)
    targets[0, 1:6], targets[1, :3] = torch.tensor([3, 9, 3, 0, 28]), torch.tensor([9, 1, 7])
    return replace(batch, targets=targets, counted=CountedTargets.of(targets))


METHODS = [
    {"method": "base", "consistency_weight": 0.3},
    {"method": "erl"},
    {"method": "prl"},
    {"method": "plr"},
    {"method": "plr", "consistency_weight": 0.3, "kl_weight": 0.2, "contrastive_weight": 0.5},
    {"method": "plr", "contrastive_weight": 0.5, "contrastive_negatives": "others"},
    {"method": "plr", "mixture": "states", "consistency_weight": 0.3},
]


@pytest.mark.parametrize("rows", ["prefix", "sequence"])
@pytest.mark.parametrize("given", METHODS)
def test_with_every_item_once_all_terms_and_gradients_are_those_over_all_items(given, rows):
    batch = random_batch() if rows == "prefix" else counted_batch()
    model = small_model(**given, hidden_dropout=0.2)
    torch.manual_seed(5)
    expected = model.losses(batch)
    model.options = replace(model.options, loss="sampled_softmax")
    model.sampler = EveryItem(29)
    torch.manual_seed(5)
    found = model.losses(batch)
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name])
    assert_equal_gradients(model, total(found), total(expected))


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_the_loss_is_that_of_the_operator_over_the_whole_table(kind):
    loss = {"softmax": "sampled_softmax", "bce": "gbce"}[kind]
    model = small_model(method="base", loss=loss, negatives=6)
    model.sampler = ItemSampler(model.options, torch.ones(29, dtype=torch.int64))
    batch = random_batch()
    found = model.losses(batch)["next_item"]
    drawn, log_q = model.sampler.draw(batch.targets)
    states, table = model.user_embedding(batch), model.item_table()
    if kind == "softmax":
        expected = plr_kernels.candidate_cross_entropy(states, table, batch.targets, drawn, log_q=log_q.double())
    else:  # the paper's sum, with what scores begin at, over the sampled items but the target itself
        power = positive_power(model.options, 6, 29)
        scores = states @ table.T + math.log(power / 6)
        own = scores.gather(1, batch.targets[:, None]).squeeze(1)
        negative = functional.logsigmoid(-scores[:, drawn]).masked_fill(drawn == batch.targets[:, None], 0)
        expected = (-(power * functional.logsigmoid(own) + negative.sum(dim=1)) / 7).mean()
    close(found, expected)
    assert_equal_gradients(model, found, expected)


def test_divergences_weigh_what_is_rarely_drawn_the_more():
    generator = torch.Generator().manual_seed(2)
    states, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 2, 5), (9, 5)))
    ids, log_q = torch.tensor([8, 1, 4, 4]), torch.tensor([-2.0, 0.5, -1.0, -1.0], dtype=torch.float64)
    logits = states @ rows[ids].T / 0.7 - log_q
    log_p = logits.log_softmax(-1)
    divergence = (log_p[:, 0].exp() * (log_p[:, 0] - log_p[:, 1])).sum(-1)
    divergence = divergence + (log_p[:, 1].exp() * (log_p[:, 1] - log_p[:, 0])).sum(-1)
    close(pairwise_kl(states, SampledItems(rows, ids, log_q, "softmax", 1.0), temperature=0.7), divergence.mean() / 2)


def test_bce_over_drawn_items_has_no_correction_and_its_power():
    states, rows = torch.randn(3, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    items = SampledItems(rows, torch.tensor([7, 7, 2]), None, "bce", 0.3)
    targets = torch.tensor([0, 2, 8])
    found = linear_cross_entropy(states, items, targets, temperature=1.0, reduction="none")
    sigmoid = torch.sigmoid(states @ rows.T)
    terms = [1 - sigmoid[0, 7], 1 - sigmoid[0, 7], 1 - sigmoid[0, 2], sigmoid[0, 0] ** 0.3]
    close(found[0], -torch.stack(terms).log().sum() / 4)


def test_a_batch_is_numbered_anew_and_what_fills_rows_up_names_no_item():
    batch = Batch(
        item_ids=torch.tensor([[7, 9, 4], [4, 0, 0]]),  # the zeros fill up
        lengths=torch.tensor([3, 1]),
        targets=torch.tensor([9, 2]),
        users=torch.tensor([0, 1]),
    )
    anew, others, named = numbered_anew(batch, torch.tensor([11, 4, 11]))
    assert named.tolist() == [2, 4, 7, 9, 11]
    assert named[anew.item_ids[0]].tolist() == [7, 9, 4]
    assert named[anew.item_ids[1, 0]] == 4
    assert named[anew.each_target].tolist() == [9, 2]
    assert named[others].tolist() == [11, 4, 11]


def test_without_a_sampler_it_is_said():
    model = small_model(method="base", loss="bce")
    with pytest.raises(RuntimeError, match="loss 'bce' needs the model's sampler"):
        model.losses(random_batch())
