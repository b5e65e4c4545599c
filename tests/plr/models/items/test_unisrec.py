"""UniSRec's items: the adaptor against its formula, and what follows from items being their text."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from plr.config import Config
from plr.data import Batch, CountedTargets
from plr.errors import ConfigError
from plr.items import ItemData, ItemText
from plr.models import build_model
from plr.models.items.unisrec import MixtureOfExpertsAdaptor
from plr.models.layers.dropout import Dropout
from plr.models.sampled_items import ItemSampler
from tests.plr.models.helpers import random_batch, small_config

ITEMS, WIDTH = 29, 11


def text(items=ITEMS, width=WIDTH, without=(3, 8)):
    present = torch.ones(items, dtype=torch.bool)
    present[list(without)] = False
    return ItemText(torch.randn(items, width, generator=torch.Generator().manual_seed(1)), present)


def unisrec(mode="inductive", spread=0.3, **changes):
    config = small_config(**{
        "backbone": "unisrec", "method": "base", "text_vectors": "a folder", "unisrec_mode": mode, "experts": 3,
        "adaptor_dropout": 0.0, **changes,
    })  # fmt: skip
    model = build_model(config, ItemData(ITEMS, text=text()))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.double()


@torch.no_grad()
def written_out(adaptor, x, noise=None, masks=None):
    """The adaptor's value [d] for one text vector, number by number."""
    width, experts = adaptor.gate.shape
    logits = []
    for e in range(experts):
        logit = sum(x[i] * adaptor.gate[i, e] for i in range(width))
        if noise is not None:
            spread = sum(x[i] * adaptor.noise[i, e] for i in range(width))
            logit = logit + noise[e] * (math.log1p(math.exp(spread)) + 0.01)
        logits.append(logit)
    total = sum(math.exp(logit) for logit in logits)
    out = 0
    for e, whitening in enumerate(adaptor.whitening):
        kept = x if masks is None else x * masks[e]
        out = out + math.exp(logits[e]) / total * (whitening.linear.weight @ (kept - whitening.shift))
    return out


def test_the_adaptor_is_its_formula():
    adaptor = unisrec().items.adaptor.eval()
    vectors = text().vectors.double()
    expected = torch.stack([written_out(adaptor, x) for x in vectors])
    torch.testing.assert_close(adaptor(vectors), expected, rtol=1e-12, atol=1e-12)


def test_in_training_gates_are_noisy_and_every_expert_drops_for_itself(monkeypatch):
    adaptor = unisrec(adaptor_dropout=0.4).items.adaptor.train()
    vectors = text().vectors.double()
    torch.manual_seed(3)
    noise = torch.randn(ITEMS, 3, dtype=torch.float64)
    masks = [Dropout(0.4)(torch.ones_like(vectors)) for _ in range(3)]
    assert not torch.equal(masks[0], masks[1])
    torch.manual_seed(3)
    actual = adaptor(vectors)
    expected = torch.stack(
        [written_out(adaptor, x, noise[v], [mask[v] for mask in masks]) for v, x in enumerate(vectors)]
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_new_adaptor_gives_all_experts_an_equal_share():
    """The recommender's drawing of weights leaves the zeros of gate and shift alone."""
    config = small_config(backbone="unisrec", method="plr", text_vectors="a folder")
    adaptor = build_model(config, ItemData(ITEMS, text=text())).items.adaptor.eval()
    assert isinstance(adaptor, MixtureOfExpertsAdaptor)
    assert len(adaptor.whitening) == 8
    for zero in (adaptor.gate, adaptor.noise, *(whitening.shift for whitening in adaptor.whitening)):
        assert not zero.count_nonzero()
    assert torch.equal(adaptor.gates(text().vectors), torch.full((ITEMS, 8), 1 / 8))
    weights = torch.stack([whitening.linear.weight for whitening in adaptor.whitening])
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)


def test_items_without_text_share_a_learned_vector_whatever_stands_in_their_rows():
    model = unisrec().eval()
    table = model.item_table()
    assert torch.equal(table[3], model.items.missing.weight[0])
    assert torch.equal(table[3], table[8])
    model.items.vectors[3] += 100
    again = model.item_table()
    assert torch.equal(again, table)
    again[3].sum().backward()
    assert model.items.missing.weight.grad.count_nonzero()


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_scores_are_cosines_at_the_default_temperature(mode):
    model = unisrec(mode).eval()
    batch = random_batch()
    table = model.item_table()
    states = model.encoder.encode(model.embed(table, batch.item_ids), batch.lengths).last
    cosines = functional.cosine_similarity(states[:, None], table[None], dim=-1)
    torch.testing.assert_close(model.scores(batch), cosines, rtol=1e-12, atol=1e-12)
    assert model.temperature == 0.07
    expected = functional.cross_entropy(cosines / 0.07, batch.targets)
    torch.testing.assert_close(model.losses(batch)["next_item"], expected, rtol=1e-10, atol=1e-10)


def test_the_transductive_table_adds_ids_and_the_inductive_has_none():
    both, alone = unisrec("transductive").eval(), unisrec("inductive").eval()
    items = both.items
    adapted = torch.where(text().present[:, None], items.adaptor(items.vectors), items.missing.weight)
    torch.testing.assert_close(both.item_table(), adapted + items.embedding.weight, rtol=1e-12, atol=1e-12)
    assert alone.items.embedding is None
    assert not any(str(ITEMS) in str(list(parameter.shape)) for parameter in alone.parameters())


def test_text_is_not_in_the_weights():
    assert not {"items.vectors", "items.present"} & set(unisrec().state_dict())


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_every_parameter_learns(mode):
    model = unisrec(mode).train()
    model.losses(random_batch((12, 9, 8, 7)))["next_item"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero(), name


def clustered(clusters=8, known=5, users=240, length=8, seed=0):
    """Sequences within clusters; item = cluster · (known + 1) + place, and place `known` is never in a history."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.arange(users) % clusters
    places = torch.randint(0, known, (users, length), generator=generator)
    items = cluster[:, None] * (known + 1) + places
    never = cluster * (known + 1) + known
    centres = torch.randn(clusters, 16, generator=generator)
    vectors = centres.repeat_interleave(known + 1, 0)
    vectors = vectors + 0.3 * torch.randn(vectors.shape, generator=generator)
    return items, never, functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize(("backbone", "from_text"), [("unisrec", True), ("sasrec", False)])
def test_items_never_seen_in_training_are_ranked_from_their_text(backbone, from_text):
    """48 items, 8 of them never in training: chance finds 10/48 = 21 % of them in the top 10."""
    items, never, vectors = clustered()
    count = len(vectors)
    config = Config(
        backbone=backbone, method="base", dim=16, layers=1, ffn_dim=16, max_length=8, hidden_dropout=0.1,
        attention_dropout=0.1, text_vectors="a folder" if from_text else None, experts=4,
    )  # fmt: skip
    model = build_model(config, ItemData(count, text=ItemText(vectors, torch.ones(count, dtype=torch.bool))))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    lengths = torch.full((len(items),), items.shape[1])
    targets = items[:, 1:]
    batch = Batch(items[:, :-1], lengths - 1, targets, torch.arange(len(items)), CountedTargets.of(targets))
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch)["next_item"].backward()
        optimizer.step()
    scores = model.eval().scores(Batch(items, lengths, never, torch.arange(len(items))))
    found = (scores.topk(10).indices == never[:, None]).any(1).float().mean().item()
    if from_text:
        assert found > 0.6
    else:
        assert found < 0.21


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="text_vectors is missing: backbone 'unisrec' requires it"):
        Config(backbone="unisrec")
    with pytest.raises(ConfigError, match="text_vectors is not read by backbone 'sasrec'; it is by unisrec"):
        Config(text_vectors="a folder")
    with pytest.raises(ConfigError, match="features is not read by backbone 'unisrec'; it is by sasrec, bert4rec, "):
        Config(backbone="unisrec", text_vectors="a folder", features="a file")
    with pytest.raises(ConfigError, match="feature_fields \\['store'\\] were chosen, but features names no file"):
        Config(feature_fields=["store"])
    assert Config(features="a file", feature_fields="store, tags").feature_fields == ("store", "tags")
    with pytest.raises(ConfigError, match="needs the items' text vectors"):
        build_model(Config(backbone="unisrec", text_vectors="a folder"), 5)
    assert Config(backbone="unisrec", text_vectors="a folder", temperature=0.5).temperature == 0.5
    assert Config().temperature == 1.0


def test_in_training_rows_have_the_noise_that_they_have_in_the_table():
    """So that processes which name different items agree on those that they share."""
    items = unisrec("transductive", adaptor_dropout=0.0).train().items
    found = []
    for ids in (torch.arange(ITEMS), torch.tensor([3, 17, 0, 8]), torch.tensor([8, 3])):
        torch.manual_seed(5)
        found.append((ids, items.rows(ids)))
    torch.manual_seed(5)
    table = items.table()
    for ids, rows in found:
        torch.testing.assert_close(rows, table[ids], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(items.table(), table, rtol=1e-5, atol=1e-6)


def test_of_rows_alone_no_other_text_is_read(monkeypatch):
    model = unisrec("transductive").eval()  # without dropout
    ids = torch.tensor([3, 17, 0, 8])
    torch.testing.assert_close(model.items.rows(ids), model.items.table()[ids])
    encoded = []
    adaptor = type(model.items.adaptor)
    forward = adaptor.forward

    def counted(self, texts, noise):
        encoded.append(len(texts))
        return forward(self, texts, noise)

    monkeypatch.setattr(adaptor, "forward", counted)
    model.options = replace(model.options, loss="sampled_softmax", negatives=4)
    model.sampler = ItemSampler(model.options, torch.ones(ITEMS, dtype=torch.int64))
    batch = random_batch()
    model.losses(batch)
    real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
    drawn, _ = model.sampler.draw(batch.targets)
    assert encoded == [len(torch.cat([batch.item_ids[real], batch.targets, drawn]).unique())]
