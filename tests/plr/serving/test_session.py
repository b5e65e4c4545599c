"""Sessions: what is appended is computed alone, and the answers are those for the whole history."""

from __future__ import annotations

import copy
import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from plr.errors import EngineError, RequestError, RunError
from plr.serving import Recommender
from plr.serving.engine import Engine
from plr_kernels import extension, use_backend
from tests.plr.models.helpers import small_config
from tests.plr.serving.test_engine import MODELS, SETS, ragged, trained

ITEMS = 61
IDS = [f"i{item}" for item in range(ITEMS)]
LONGEST = 12  # max_length of small_config


def recommender_of(**changes):
    return Recommender(trained(**changes), IDS, small_config(**changes))


@pytest.fixture(scope="module")
def recommender():
    return recommender_of(method="plr", fast_state="component")


def assert_kept_as_encoded(engine, ids, steps):
    """After each step the states are those of `states` for all items so far, to the bit."""
    kept, first = engine.kept_history(), 0
    for step in steps:
        found = kept.append(ids[first : first + step])
        first += step
        assert kept.length == first
        whole = engine.states(ids[:first], torch.tensor([0, first]))
        assert torch.equal(found.states, whole.states)
        assert (found.log_weights is None) == (whole.log_weights is None)
        assert found.log_weights is None or torch.equal(found.log_weights, whole.log_weights)


@pytest.mark.parametrize(
    "changes",
    [each for each in MODELS if each.get("backbone") != "bert4rec"],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_states_of_what_is_kept_are_those_of_the_whole_history(changes):
    engine = Engine(trained(**{**changes, "max_length": 70}))
    assert_kept_as_encoded(engine, ragged([70])[0], [1] * 18 + [15, 2, 30, 1, 1, 1, 2])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["base", "plr"])
def test_states_of_what_is_kept_on_every_instruction_set(name, method, monkeypatch):
    monkeypatch.setattr(extension, "_instruction_set", name)
    engine = Engine(trained(method=method, dim=50, ffn_dim=300, max_length=70))
    assert_kept_as_encoded(engine, ragged([70])[0], [3, 1, 31, 1, 1, 30, 3])


def test_long_histories_are_kept_in_tiles():
    engine = Engine(trained(method="plr", dim=32, max_length=600))
    assert_kept_as_encoded(engine, ragged([600])[0], [300, 1, 257, 1, 41])


def test_what_cannot_be_kept_is_named():
    engine = Engine(trained(method="base"))
    kept, (ids, _) = engine.kept_history(), ragged([13])
    with pytest.raises(TypeError, match=r"ids must be an int64 tensor on the CPU; found torch\.int32"):
        kept.append(ids.int())
    with pytest.raises(ValueError, match=r"a session of 0 items takes 1 to 12 more \(max_length 12\), found 0"):
        kept.append(ids[:0])
    kept.append(ids[:5])
    with pytest.raises(ValueError, match=r"a session of 5 items takes 1 to 7 more .*, found 8"):
        kept.append(ids[:8])
    with pytest.raises(ValueError, match=r"ids must be in \[0, V\) \(V=61\), found 61"):
        kept.append(torch.tensor([1, 61]))
    assert kept.length == 5
    assert_kept_as_encoded(engine, ids[:12], [5, 7])
    with pytest.raises(EngineError, match="the encoder is not causal"):
        Engine(trained(method="base", backbone="bert4rec")).kept_history()


FILTERS = [
    {},
    {"k": 4, "exclude_seen": True},
    {"k": 7, "only": ["i3", "i4", "i9"]},
    {"k": ITEMS, "exclude": ["i5"], "where": np.arange(ITEMS) % 2 == 0},
]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "base"},
        {"method": "plr"},
        {"method": "plr", "mixture": "states", "fast_state": "ranking"},
        {"method": "plr", "backbone": "bert4rec"},
        {"method": "lares"},
        {"method": "base", "backbone": "bert4rec-cloze"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_answers_are_those_of_the_whole_history(changes):
    """Before max_length and beyond, whatever computes them."""
    recommender = recommender_of(**changes)
    history = [IDS[7 * place % ITEMS] for place in range(2 * LONGEST)]
    session = recommender.session(history[:2])
    for length in range(2, len(history)):
        options = FILTERS[length % len(FILTERS)]
        assert session.recommend(**options) == recommender.recommend(
            [history[:length]], **{name: [value] if name in ("only",) else value for name, value in options.items()}
        )[0]
        causal = "backbone" not in changes and changes["method"] != "lares"
        assert (session.bytes_kept > 0) == (causal and length <= LONGEST)
        session.append(history[length])
    assert session.history == history
    assert len(session) == len(history)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, ITEMS - 1), st.booleans()), min_size=1, max_size=20))
def test_any_order_of_appending_and_asking(recommender, steps):
    session, history = recommender.session(), []
    for item, asked in steps:
        session.append(IDS[item])
        history.append(IDS[item])
        if asked:
            assert session.recommend(5) == recommender.recommend([history], 5)[0]
            assert session.recommend(3) == recommender.recommend([history], 3)[0]
    assert session.recommend(5) == recommender.recommend([history], 5)[0]


def test_a_model_that_has_changed_is_asked_anew():
    recommender = recommender_of(method="base")
    session = recommender.session(["i1", "i2"])
    before = session.recommend(5)
    with use_backend("reference"):
        assert [each.item for each in session.recommend(5)] == [each.item for each in before]
    assert session.recommend(5) == before
    with torch.no_grad():
        recommender.model.encoder.layers[0].query.weight.mul_(3)
    assert session.recommend(5) == recommender.recommend([["i1", "i2"]], 5)[0] != before


def test_items_of_a_model_that_has_changed_are_made_anew():
    """Vectors of texts are no weights: a changed encoder ranked items that the former model had made."""
    model = trained(ITEMS, backbone="unisrec", method="base")
    recommender = Recommender(model, IDS, small_config())
    session = recommender.session(["i1", "i2"])
    session.recommend(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    fresh = Recommender(model, IDS, small_config())
    with use_backend("reference"):  # by PyTorch, as the changed one is
        answers = [each.recommend([["i1", "i2"]], 5) for each in (recommender, fresh)]
        states = [each.user_states([["i1", "i2"]]).states for each in (recommender, fresh)]
        assert answers[0] == answers[1] == [session.recommend(5)]
    assert torch.equal(*states)
    assert torch.equal(recommender.item_vectors, fresh.item_vectors)


def test_what_a_session_refuses(recommender):
    session = recommender.session(["i1"])
    before = session.recommend(3)
    with pytest.raises(RequestError, match="items never seen in training: 'x'"):
        session.append("x")
    with pytest.raises(RequestError, match="items never seen in training: 'x'"):
        session.extend(["i2", "x"])
    with pytest.raises(TypeError, match="an item must be an id, a text or a whole number; found True"):
        session.append(True)
    with pytest.raises(TypeError, match="an item must be an id"):
        session.append(["i2"])
    with pytest.raises(TypeError, match="a session takes a sequence of item ids; found 'i2'"):
        session.extend("i2")
    with pytest.raises(RequestError, match="k must be in"):
        session.recommend(0)
    with pytest.raises(RequestError, match="only names no item"):
        session.recommend(3, only=["x"])
    assert session.history == ["i1"]
    assert session.recommend(3) == before
    with pytest.raises(RequestError, match="holds no item yet"):
        recommender.session().recommend()
    with pytest.raises(ValueError, match='unknown must be "error" or "skip"'):
        recommender.session(unknown="ignore")
    lenient = recommender.session(["x", "i1"], unknown="skip")
    lenient.append("y")
    assert lenient.recommend(3) == before


def test_a_session_comes_back_from_its_bytes(recommender):
    session = recommender.session(["i1", "i2", "i3"], unknown="skip")
    expected = session.recommend(5)
    again = recommender.session_from_bytes(session.to_bytes())
    assert again.history == session.history
    assert again.recommend(5) == expected
    again.append("i4")
    again.append("x")  # skipped, as before
    session.append("i4")
    assert again.recommend(5) == session.recommend(5)
    copied = copy.deepcopy(recommender).session_from_bytes(session.to_bytes())
    assert copied.recommend(5) == session.recommend(5)
    assert recommender.session_from_bytes(recommender.session().to_bytes()).history == []


def test_bytes_that_are_no_session_of_the_run_are_refused(recommender):
    content = recommender.session(["i1", "i2"]).to_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 4
        with pytest.raises(RunError, match=r"no session|damaged|format version"):
            recommender.session_from_bytes(damaged)
    for length in range(len(content)):
        with pytest.raises(RunError, match=r"no session|damaged"):
            recommender.session_from_bytes(content[:length])
    with pytest.raises(RunError, match="damaged"):
        recommender.session_from_bytes(content + b"1")
    newer = content[:12] + b"\2" + content[13:-32]
    with pytest.raises(RunError, match="format version 2; this version of plr reads 1"):
        recommender.session_from_bytes(newer + hashlib.sha256(newer).digest())
    with pytest.raises(TypeError, match="read from bytes; found str"):
        recommender.session_from_bytes("plr session")
    for other in (
        recommender_of(method="base"),
        Recommender(recommender.model, [*IDS[1:], "i0"], recommender.config),
    ):
        with pytest.raises(RunError, match="of another run"):
            other.session_from_bytes(content)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("method", ["base", "plr"])
def test_many_kept_histories_advance_as_one_by_one(name, method, monkeypatch):
    monkeypatch.setattr(extension, "_instruction_set", name)
    engine = Engine(trained(method=method, dim=50, ffn_dim=300, max_length=70))
    ids = ragged([70])[0]
    together, alone = ([engine.kept_history() for _ in range(5)] for _ in range(2))
    firsts = [0] * 5
    for steps in ([1, 31, 32, 33, 2], [40, 1, 1, 35, 1], [1, 30, 37, 2, 1]):
        parts = [ids[first : first + step] for first, step in zip(firsts, steps, strict=True)]
        offsets = torch.tensor([0, *np.cumsum(steps)])
        found = engine.append(together, torch.cat(parts), offsets)
        for row, (kept, part) in enumerate(zip(alone, parts, strict=True)):
            own = kept.append(part)
            assert torch.equal(found.states[row], own.states[0])
            assert found.log_weights is None or torch.equal(found.log_weights[row], own.log_weights[0])
        firsts = [first + step for first, step in zip(firsts, steps, strict=True)]
        assert [kept.length for kept in together] == firsts


def test_what_cannot_be_appended_to_many_is_appended_to_none():
    engine = Engine(trained(method="base"))
    one, other = engine.kept_history(), engine.kept_history()
    ids = ragged([13])[0]
    engine.append([one, other], ids[:3], torch.tensor([0, 1, 3]))
    foreign = Engine(trained(method="base")).kept_history()
    for histories, items, offsets, message in (
        ([one, one], ids[:2], [0, 1, 2], "sessions must be different ones; found one twice"),
        ([one, foreign], ids[:2], [0, 1, 2], "the session is another engine's"),
        ([one, other], ids[:12], [0, 1, 12], r"a session of 2 items takes 1 to 10 more .*, found 11"),
        ([one, other], torch.tensor([1, 61]), [0, 1, 2], r"ids must be in \[0, V\) \(V=61\), found 61 in history 1"),
        ([one, other], ids[:2], [0, 2], r"offsets must be 3 numbers, B \+ 1; found 2"),
        ([one, other], ids[:2], [0, 1, 3], "offsets must be"),
        # Ids beyond those given, which nothing may read: there is one that no item has.
        ([one, other], torch.tensor([1, 2, 61])[:2], [0, 3, 2], r"a session of 2 items takes 1 to 10 .*, found -1"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.append(histories, items, torch.tensor(offsets))
    assert (one.length, other.length, foreign.length) == (1, 2, 0)
    assert len(engine.append([], ids[:0], torch.tensor([0])).states) == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, ITEMS - 1), max_size=5)), max_size=5), max_size=5
    )
)
def test_many_sessions_are_answered_as_each_alone(recommender, steps):
    """Before max_length and beyond, in any order, with what was asked alone between."""
    sessions = [recommender.session([IDS[place]]) for place in range(4)]
    copies = [recommender.session([IDS[place]]) for place in range(4)]
    for step in steps:
        for place, items in step:
            sessions[place].extend(IDS[item] for item in items)
            copies[place].extend(IDS[item] for item in items)
        order = [place for place, _ in step]  # some twice
        found = recommender.recommend_sessions([sessions[place] for place in order], 5, exclude=[["i1"]] * len(order))
        assert found == [copies[place].recommend(5, exclude=["i1"]) for place in order]
        assert found == recommender.recommend([sessions[place].history for place in order], 5, exclude=["i1"])


@pytest.mark.parametrize("changes", [{"method": "lares"}, {"method": "plr", "backbone": "bert4rec"}], ids=str)
def test_many_sessions_of_what_is_not_kept(changes):
    recommender = recommender_of(**changes)
    histories = [["i1", "i2"], ["i5"], ["i7"] * 15]
    found = recommender.recommend_sessions([recommender.session(history) for history in histories], 4)
    assert found == recommender.recommend(histories, 4)


def test_sessions_that_cannot_be_answered_together(recommender):
    with pytest.raises(RequestError, match="session 1: the history holds no item yet"):
        recommender.recommend_sessions([recommender.session(["i1"]), recommender.session()])
    with pytest.raises(ValueError, match="session 0 is another recommender's"):
        recommender.recommend_sessions([recommender_of(method="base").session(["i1"])])
    assert recommender.recommend_sessions([]) == []
