"""Items like an item: the cosine of their vectors, against the formula; what is refused."""

import pytest
import torch

import plr
from plr.cli.program import main
from plr.config import Config
from plr.errors import RequestError, RunError
from plr.serving import Recommender
from plr.serving.similar import similar_items
from plr.training import train
from tests.plr.models.helpers import small_config, small_model


@pytest.fixture(scope="module")
def recommender():
    model = small_model(29).float()
    with torch.no_grad():
        model.items.embedding.weight[7] = 3 * model.items.embedding.weight[11]  # the same direction
    return Recommender(model, [f"i{item}" for item in range(29)], small_config())


def test_the_nearest_are_those_of_the_cosine(recommender):
    table = recommender.model.item_table().detach().double()
    unit = table / table.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    answers = similar_items(recommender, ["i3", "i11", "i3"], 28)
    for number, answer in zip((3, 11, 3), answers, strict=True):
        order = [int(each.item[1:]) for each in answer]
        assert sorted(order) == [item for item in range(29) if item != number]
        expected = cosine[number, order]
        assert [each.score for each in answer] == pytest.approx(expected.tolist(), abs=1e-6)
        assert (expected.diff() <= 1e-6).all()
    assert answers[0] == answers[2]
    assert answers[1][0].item == "i7"
    assert answers[1][0].score == pytest.approx(1.0, abs=1e-6)
    assert max(each.score for answer in answers for each in answer) <= 1


@pytest.mark.parametrize(
    ("items", "k", "error", "message"),
    [
        (["i3", "x", "y"], 3, RequestError, "never seen in training: 'x', 'y'"),
        (["i3"], 29, RequestError, r"1\.\.28"),
        (["i3"], 0, RequestError, r"1\.\.28"),
        (["i3"], 2.5, TypeError, "whole number"),
        ("i3", 3, TypeError, "sequence of item ids"),
    ],
)
def test_what_cannot_be_answered_is_refused(recommender, items, k, error, message):
    with pytest.raises(error, match=message):
        similar_items(recommender, items, k)


@pytest.mark.parametrize("k", [None, 1])
def test_a_run_of_one_item(k):
    recommender = Recommender(small_model(1).float(), ["a"], small_config())
    with pytest.raises(RequestError, match="the run has one item"):
        similar_items(recommender, ["a"], k)


def test_damaged_vectors_are_no_answer():
    model = small_model(5).float()
    with torch.no_grad():
        model.items.embedding.weight[2, 0] = float("nan")
    recommender = Recommender(model, list("abcde"), small_config())
    with pytest.raises(RunError, match="not finite"):
        similar_items(recommender, ["a"], 2)


def test_the_command_prints_a_table_for_each_item(quick, capsys):
    train(Config(**{**quick, "epochs": 1}))
    capsys.readouterr()
    assert main(["similar", quick["out"], "i3", "i4", "-k", "2"]) == 0
    text = capsys.readouterr().out
    expected = similar_items(plr.Recommender.load(quick["out"]), ["i3", "i4"], 2)
    assert text.index("Nearest to i3:") < text.index("Nearest to i4:")
    for answer in expected:
        for each in answer:
            assert each.item in text
            assert f"{each.score:.4f}" in text
    assert main(["similar", quick["out"], "nothing"]) == 2
    assert "never seen in training: 'nothing'" in capsys.readouterr().err
