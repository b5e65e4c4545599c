"""Rows ranked with the engine: the same rows, targets and users, ranks within the scores' rounding."""

from __future__ import annotations

import pytest
import torch

from plr.config import Config
from plr.data import Batch
from plr.errors import EvaluationError
from plr.evaluation import rank_rows
from plr.serving import engine_scorer as module
from plr.serving.engine_scorer import engine_scorer
from plr.serving.evaluate import evaluate_run
from plr.training import train
from tests.plr.serving.test_engine import ITEMS, trained


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows in (7, 1, 16):
        lengths = torch.randint(1, 13, (rows,), generator=generator)
        items = torch.randint(ITEMS, (rows, int(lengths.max())), generator=generator)
        items[torch.arange(items.shape[1]) >= lengths[:, None]] = 0
        found.append(Batch(items, lengths, torch.randint(ITEMS, (rows,), generator=generator), torch.arange(rows)))
    return found


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("changes", [{"method": "base"}, {"method": "plr"}, {"method": "prl", "backbone": "bert4rec"}])
def test_ranks_are_the_models_within_rounding(changes, exclude_seen):
    model = trained(**changes)
    plain = rank_rows(model, batches(), exclude_seen=exclude_seen)
    found = rank_rows(model.train(), batches(), exclude_seen=exclude_seen, scorer_of=engine_scorer)
    assert model.training
    assert torch.equal(found.users, plain.users)
    assert torch.equal(found.targets, plain.targets)
    model.eval().double()
    low, high = [], []  # what the ranks can be where scores are off by a little
    for batch in batches():
        scores = model.scores(batch)
        if exclude_seen:
            for row in range(len(batch)):
                seen = [item for item in batch.item_ids[row][: batch.lengths[row]] if item != batch.targets[row]]
                scores[row, seen] = -torch.inf
        own = scores.gather(1, batch.targets[:, None])
        near = 1e-5 * scores[scores.isfinite()].abs().max()
        low.append(1 + (scores > own + near).sum(1))
        high.append((scores >= own - near).sum(1))
    assert bool((torch.cat(low) <= found.ranks).all())
    assert bool((found.ranks <= torch.cat(high)).all())


def test_a_model_that_the_engine_cannot_take_ranks_by_itself():
    model = trained(method="lares")
    assert engine_scorer(model) is None
    plain, found = (rank_rows(model, batches(), scorer_of=scorer_of) for scorer_of in (None, engine_scorer))
    assert torch.equal(plain.ranks, found.ranks)


def test_a_score_that_is_not_finite_names_the_user():
    model = trained(method="base")
    with torch.no_grad():
        model.items.embedding.weight[7] = torch.nan
    with pytest.raises(EvaluationError, match="user 0: the score of row 0 for item"):
        rank_rows(model, batches(), scorer_of=engine_scorer)


@pytest.mark.parametrize(("method", "uses"), [("plr", True), ("lares", False)])
def test_a_run_validates_and_is_measured_with_the_engine(quick, monkeypatch, method, uses):
    made = []

    def counted(model):
        made.append(module.why_not(model))
        return engine(model)

    engine = module.Engine
    monkeypatch.setattr(module, "Engine", counted)
    phase = {"phase": "spt"} if method == "lares" else {}
    result = train(Config(**{**quick, "epochs": 2}, method=method, rank_with="engine", **phase))
    assert made == ([None] * 4 if uses else [])  # two validations, both splits
    evaluation = evaluate_run(quick["out"])
    assert len(made) == (5 if uses else 0)
    assert evaluation.metrics["ndcg@10"] == result["test"]["ndcg@10"]
    assert any("the engine cannot take it" in note for note in evaluation.notes) == (not uses)
    by_model = evaluate_run(quick["out"], rank_with="model")
    assert len(made) == (5 if uses else 0)
    # Where two scores round alike a rank may move by one: of one row, and at most from 1 to 2.
    assert by_model.metrics["mrr"] == pytest.approx(evaluation.metrics["mrr"], abs=0.5 / by_model.rows)
