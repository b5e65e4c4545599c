"""The inference engine: within the parity rule of the float64 model, and the same to the bit however it is asked."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from plr.data import Batch
from plr.errors import EngineError, RunError
from plr.items import ItemData, ItemText
from plr.models import build_model
from plr.models.scoring import ItemScorer
from plr.serving import Recommender
from plr.serving.engine import Engine, UserStates, why_not
from plr_kernels import extension, use_backend
from tests.plr.models.helpers import small_config
from tests.plr_kernels.harness import FACTOR, NUDGED_RUNS

ITEMS = 61
SETS = [name for name in extension.INSTRUCTION_SETS[1:-1] if extension._cpp.instruction_set(name)]


def trained(num_items=ITEMS, **changes):
    """A float32 model in evaluation mode, with weights far from zero."""
    data = num_items
    generator = torch.Generator().manual_seed(7)
    if changes.get("backbone") == "unisrec":
        changes = {"text_vectors": "a folder", **changes}
        vectors = torch.randn(num_items, 11, generator=generator)
        data = ItemData(num_items, text=ItemText(vectors, torch.arange(num_items) > 2))
    model = build_model(small_config(**changes), data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.float().eval()


def ragged(lengths, num_items=ITEMS, seed=0):
    """ids and offsets of random histories."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, num_items, (sum(lengths),), generator=generator)
    return ids, torch.tensor([0, *accumulate(lengths)])


def padded(ids, offsets, max_length):
    """The same histories as the model takes them."""
    rows = [ids[first:last][-max_length:] for first, last in pairwise(offsets.tolist())]
    lengths = torch.tensor([len(row) for row in rows])
    item_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(item_ids, lengths, torch.zeros_like(lengths), torch.arange(len(rows)))


@torch.no_grad()
def scored(model, batch):
    """States and log-weights of the model, side by side for each history."""
    scorer = model.scorer(batch)
    return joined(scorer.states, scorer.log_weights)


def joined(states, log_weights):
    states = states.flatten(1)
    return states if log_weights is None else torch.cat([states, log_weights], dim=1)


def assert_as_exact_as_plain(model, lengths):
    """The engine's largest error is at most FACTOR times that of the model in float32, run on weights as rounded."""
    ids, offsets = ragged(lengths)
    batch = padded(ids, offsets, model.encoder.max_length)
    truth = scored(copy.deepcopy(model).double(), batch)
    generator = torch.Generator().manual_seed(3)
    allowed = 0.0
    for _ in range(NUDGED_RUNS):
        nudged = copy.deepcopy(model)
        with torch.no_grad():
            for weight in nudged.parameters():
                weight *= 1 + (torch.rand(weight.shape, generator=generator) - 0.5) * torch.finfo(torch.float32).eps
        allowed = max(allowed, float((scored(nudged, batch).double() - truth).abs().max()))
    found = Engine(model).states(ids, offsets)
    assert found.states.shape == model.scorer(batch).states.shape
    assert float((joined(*found).double() - truth).abs().max()) <= FACTOR * allowed


LENGTHS = [12, 1, 2, 7, 12, 30, 3, 11]  # 30: more than max_length

MODELS = [
    {"method": "base"},
    {"method": "base", "layers": 1},
    {"method": "base", "layers": 3, "heads": 4},
    {"method": "base", "dim": 50, "ffn_dim": 31},
    {"method": "base", "dim": 64, "heads": 1},
    {"method": "base", "dim": 256, "ffn_dim": 300},
    {"method": "base", "dim": 96, "heads": 2},
    {"method": "base", "backbone": "bert4rec"},
    {"method": "base", "backbone": "unisrec"},
    {"method": "erl"},
    {"method": "erl", "backbone": "unisrec", "steps": 3},
    {"method": "prl", "steps": 1},
    {"method": "prl", "backbone": "bert4rec", "dim": 50},
]
for _mixture, _fast_states in (("distributions", "none added component"), ("states", "none added ranking")):
    for _number, _fast_state in enumerate(_fast_states.split()):
        for _pooling in ("mean", "last"):
            MODELS.append({"method": "plr", "mixture": _mixture, "fast_state": _fast_state, "pooling": _pooling})
        MODELS.append(
            {
                "method": "plr",
                "mixture": _mixture,
                "fast_state": _fast_state,
                "backbone": ("bert4rec", "unisrec", "sasrec")[_number],
                "dim": (50, 64, 256)[_number],
                "streams": (1, 3, 17)[_number],
                "steps": 3,
                "gate": _number != 1,
            }
        )
    MODELS.append({"method": "plr", "mixture": _mixture, "reasoning": False})


@pytest.mark.parametrize("changes", MODELS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_states_are_as_exact_as_the_model(changes):
    assert_as_exact_as_plain(trained(**changes), LENGTHS)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["base", "plr"])
def test_states_on_every_instruction_set(name, method, monkeypatch):
    monkeypatch.setattr(extension, "_instruction_set", name)
    assert_as_exact_as_plain(trained(method=method, dim=50, ffn_dim=300, max_length=70), [70, 33, 1, 64])


def test_long_histories_are_cut_into_tiles_and_panels():
    model = trained(method="plr", dim=32, max_length=600)
    assert_as_exact_as_plain(model, [600, 257, 256, 255, 513])


@pytest.fixture(scope="module")
def engines():
    return [
        Engine(trained(method="base", max_length=50, dim=64, ffn_dim=300)),
        Engine(trained(method="plr", max_length=50, dim=50, fast_state="component")),
        Engine(trained(method="plr", max_length=50, mixture="states", backbone="bert4rec")),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
    threads=st.integers(1, 5),
    number=st.integers(0, 2),
)
def test_an_answer_is_the_same_alone_and_in_any_company(engines, lengths, order, threads, number):
    engine = engines[number]
    ids, offsets = ragged(lengths, seed=sum(lengths))
    histories = [ids[first:last] for first, last in pairwise(offsets.tolist())]
    chosen = order.sample(range(len(histories)), order.randint(1, len(histories)))
    picked = [histories[index] for index in chosen]
    seen = nn.utils.rnn.pad_sequence(histories, batch_first=True, padding_value=-1)

    def answers(ids, offsets, exclude):
        users = engine.states(ids, offsets)
        return *users, *engine.rank(users, 7, exclude=exclude), *engine.top(ids, offsets, 20)

    whole = answers(ids, offsets, seen)
    before = engine._resources
    engine._resources = lambda: (before()[0], threads)
    try:
        starts = torch.tensor([0, *accumulate(len(each) for each in picked)])
        some = answers(torch.cat(picked), starts, seen[chosen])
    finally:
        engine._resources = before
    alone = answers(picked[0], torch.tensor([0, len(picked[0])]), seen[chosen[:1]])
    for of_whole, of_some, of_one in zip(whole, some, alone, strict=True):
        if of_whole is not None:
            assert torch.equal(of_whole[chosen], of_some)
            assert torch.equal(of_some[:1], of_one)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["base", "plr"])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_ranking_is_that_of_its_own_scores(name, method, rows, monkeypatch):
    """Every item once, in the order of scores that are the formula's within rounding, equal vectors by number."""
    monkeypatch.setattr(extension, "_instruction_set", name)
    model = trained(500, method=method, dim=50)
    with torch.no_grad():
        model.items.embedding.weight[333] = model.items.embedding.weight[77]
    engine = Engine(model)
    ids, offsets = ragged([1 + row % 12 for row in range(rows)], 500)
    exclude = torch.stack([torch.arange(rows) % 500, torch.full((rows,), -1)], dim=1)
    users = engine.states(ids, offsets)
    scores, items = engine.rank(users, 500, exclude=exclude)
    assert torch.equal(items[:, -1], torch.full((rows,), -1))
    assert bool((scores[:, -1] == -torch.inf).all())
    scores, items = scores[:, :-1], items[:, :-1]
    assert torch.equal(torch.cat([items, exclude[:, :1]], dim=1).sort().values, torch.arange(500).expand(rows, -1))
    descending = (scores[:, 1:] < scores[:, :-1]) | ((scores[:, 1:] == scores[:, :-1]) & (items[:, 1:] > items[:, :-1]))
    assert bool(descending.all())
    double = ItemScorer(
        users.states.double(), None if users.log_weights is None else users.log_weights.double(), model.temperature
    )
    truth = double.scores(engine.candidates.double()).gather(1, items)
    # A sum of 50 products, each rounded, of which the largest terms are the states' times the vectors' lengths.
    size = float(users.states.flatten(1).norm(dim=1).max() * engine.candidates.norm(dim=1).max())
    assert float((scores.double() - truth).abs().max()) <= 4 * 50 * size * 2**-24
    few, best = engine.rank(users, 10, exclude=exclude)
    assert torch.equal(few, scores[:, :10])
    assert torch.equal(best, items[:, :10])
    pair = [(row.tolist().index(77), row.tolist().index(333)) for row in items if {77, 333} <= set(row.tolist())]
    assert all(second == first + 1 for first, second in pair)


@pytest.mark.parametrize("name", SETS)
def test_integers_answer_as_float32_does(name, monkeypatch):
    """A table large enough to be kept as integers: what they say is what it says without them, filtered or not."""
    monkeypatch.setattr(extension, "_instruction_set", name)
    model = trained(4100, method="base", dim=64)
    engine = Engine(model)
    assert (engine._ranked.quantized_states(3) > 0) == (name != "generic")
    ids, offsets = ragged([1 + row % 12 for row in range(40)], 4100)
    users = engine.states(ids, offsets)
    exclude = torch.randint(-1, 4100, (40, 9), generator=torch.Generator().manual_seed(1))
    wheres = [None, *(torch.arange(4100) % one_in == 0 for one_in in (2, 20, 300))]
    found = [
        engine.rank(users.of_rows(slice(row, row + 1)), 3, exclude=exclude[row : row + 1], where=where)
        for where in wheres
        for row in range(40)
    ]
    engine._ranked = engine._pack(engine._as_matrix(engine.candidates), False)
    expected = [engine.rank(users, 3, exclude=exclude, where=where) for where in wheres]
    for part in (0, 1):
        assert torch.equal(torch.cat([each[part] for each in found]), torch.cat([each[part] for each in expected]))


def test_a_recommender_says_what_computes_its_answers():
    model = trained(method="plr")
    recommender = Recommender(model, [f"i{item}" for item in range(ITEMS)], small_config())
    histories = [["i3", "i5"], ["i9"] * 40, ["i1"]]
    assert recommender.engine is not None
    by_engine = recommender.recommend(histories, k=ITEMS)
    assert recommender.recommend(histories[1:2], k=3) == [by_engine[1][:3]]
    with use_backend("reference"):
        assert recommender.engine is None
        by_model = recommender.recommend(histories, k=ITEMS)
    for one, other in zip(by_engine, by_model, strict=True):
        ours, theirs = ({each.item: each.score for each in row} for row in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    with torch.no_grad():
        model.encoder.layers[0].query.bias += 1
    assert recommender.engine is None  # which would answer with the former weights
    assert Recommender(model, recommender.item_ids, small_config()).engine is not None
    assert Recommender(trained(method="lares"), recommender.item_ids, small_config(method="lares")).engine is None


def test_the_work_is_shared_among_threads(engines):
    """Enough of it for several, so that the property above is one of threads too."""
    ids, offsets = ragged([50] * 64)
    assert 64 * 50 * 2 * 64 * (4 * 64 + 2 * 300) > 5 * 2**22
    before = engines[0]._resources
    one = engines[0].states(ids, offsets)
    engines[0]._resources = lambda: (before()[0], 5)
    try:
        five = engines[0].states(ids, offsets)
    finally:
        engines[0]._resources = before
    assert torch.equal(one.states, five.states)


def test_an_offset_into_the_ids_and_no_histories(engines):
    ids, offsets = ragged([5, 3, 9])
    whole, part = engines[0].states(ids, offsets).states, engines[0].states(ids, offsets[1:]).states
    assert torch.equal(whole[1:], part)
    assert engines[1].states(ids, offsets[:1]).states.shape == (0, 5, 50)


def test_what_is_no_history_is_named(engines):
    engine, (ids, offsets) = engines[0], ragged([2, 3])
    with pytest.raises(TypeError, match=r"ids must be an int64 tensor on the CPU; found torch\.int32"):
        engine.states(ids.int(), offsets)
    with pytest.raises(ValueError, match="offsets must be B \\+ 1 numbers"):
        engine.states(ids, offsets + 1)
    with pytest.raises(ValueError, match="every history needs an item; found 2 and 2 for history 1"):
        engine.states(ids, torch.tensor([0, 2, 2, 5]))
    with pytest.raises(ValueError, match=r"ids must be in \[0, V\) \(V=61\), found 61 in history 1"):
        engine.states(torch.tensor([1, 2, 61]), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="offsets must grow: every history needs an item; found 10000000 and 2"):
        engine.states(ids, torch.tensor([0, 10**7, 2]))
    with pytest.raises(ValueError, match=r"k must be in \[1, V=61\]; found 62"):
        engine.top(ids, offsets, 62)
    with pytest.raises(ValueError, match=r"exclude must be in \[0, V\), or -1 as padding \(V=61\), found 61"):
        engine.top(ids, offsets, 3, exclude=torch.full((2, 1), 61))
    with pytest.raises(ValueError, match="exclude"):
        engine.top(ids, offsets, 3, exclude=torch.full((3, 1), 6))


def test_models_that_pytorch_computes_are_named():
    model = trained(method="base")
    assert why_not(model) is None
    assert why_not(model.train()) == "the model is in training mode"
    assert "torch.float64" in why_not(copy.deepcopy(model).eval().double())
    assert why_not(trained(method="lares")) == "LARESRecommender is computed by PyTorch"
    assert why_not(trained(method="base", backbone="bert4rec-cloze")) == "ClozeRecommender is computed by PyTorch"
    model.eval().encoder.layers[0].query.register_forward_hook(lambda *_: None)
    assert why_not(model) == "encoder.layers.0.query has hooks"
    with pytest.raises(EngineError, match=r"the engine cannot take the model: encoder\.layers\.0\.query has hooks"):
        Engine(model)
    with use_backend("reference"):
        assert why_not(trained(method="base")) == "the chosen backend is reference"


def test_states_that_are_not_of_the_engine_are_named(engines):
    one, mixture = (engine.states(*ragged([2, 3])) for engine in engines[:2])
    for engine, users, message in (
        (engines[0], UserStates(torch.randn(4, 600, 50), None), "states must have shape"),
        (engines[0], UserStates(torch.zeros(50), None), "states must have shape"),
        (engines[0], UserStates(torch.zeros(2, 3), None), "states must have shape"),
        (engines[0], UserStates(one.states.double(), None), "states must be a float32 tensor on the CPU"),
        (engines[0], UserStates(one.states, torch.zeros(2, 1)), "log_weights must be None"),
        (engines[1], UserStates(mixture.states, None), "log_weights must be a float32 tensor"),
        (engines[1], UserStates(mixture.states, mixture.log_weights[:, :1]), "log_weights"),
        (engines[1], UserStates(mixture.states[:, :2], mixture.log_weights), "states"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            engine.rank(users, 3)


@pytest.mark.parametrize("name", ["items.embedding.weight", "encoder.layers.1.ffn_out.weight"])
def test_weights_whose_sums_overflow_are_no_answer(name):
    model = trained(method="plr")
    with torch.no_grad():
        model.get_parameter(name)[3, 0] = 1e30
    recommender = Recommender(model, [f"i{item}" for item in range(ITEMS)], small_config())
    assert recommender.engine is not None
    with pytest.raises(RunError, match="not finite"):
        recommender.recommend([["i3", "i5"]], 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("changes", [{"method": "base"}, {"method": "plr"}, {"method": "lares"}])
def test_a_damaged_vector_that_no_history_holds_is_no_answer(changes, value):
    """NaN and infinity are above all numbers: it would be the best of everyone who may get it."""
    model = trained(**changes)
    with torch.no_grad():
        model.items.embedding.weight[7] = value
    recommender = Recommender(model, [f"i{item}" for item in range(ITEMS)], small_config(**changes))
    for asked in (
        lambda **options: recommender.recommend([["i3", "i5"], ["i4"]], 3, **options),
        lambda **options: recommender.session(["i3"]).recommend(3, **options),
    ):
        with pytest.raises(RunError, match=r"the (score|user embedding) of .* is not finite; the weights are damaged"):
            asked()
    if changes["method"] == "base":  # no sum over all items
        assert len(recommender.recommend([["i3", "i5"]], 3, exclude=["i7"])[0]) == 3


def test_k_is_a_number():
    recommender = Recommender(trained(method="base"), [f"i{item}" for item in range(ITEMS)], small_config())
    with pytest.raises(TypeError, match="k must be a whole number; found True"):
        recommender.recommend([["i3"]], True)


def test_replaced_modules_are_left_to_pytorch():
    class Adapted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, states):
            return self.inner(states) + 1

    model = trained(method="base")
    model.encoder.layers[0].ffn_out = Adapted(model.encoder.layers[0].ffn_out).eval()
    assert why_not(model) == "encoder.layers.0.ffn_out is a Adapted"
    model = trained(method="base")
    model.encoder.layers[0].train()
    assert why_not(model) == "the model is in training mode"


def test_an_engine_keeps_the_weights_it_was_made_of():
    model = trained(method="plr")
    engine, (ids, offsets) = Engine(model), ragged([2, 3])
    before = engine.top(ids, offsets, 5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    assert not engine.fits(model)
    for found, expected in zip(engine.top(ids, offsets, 5), before, strict=True):
        assert torch.equal(found, expected)


def test_a_copied_recommender_answers_the_same():
    recommender = Recommender(trained(method="plr"), [f"i{item}" for item in range(ITEMS)], small_config())
    copied = copy.deepcopy(recommender)
    assert copied.engine is not None
    assert copied.recommend([["i3", "i5"]], 4) == recommender.recommend([["i3", "i5"]], 4)
