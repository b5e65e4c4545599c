"""Every system as a user has it: trained, saved, loaded, evaluated, asked; it learns more than what is popular."""

import pytest
import torch

from plr.config import Config
from plr.data import prepare
from plr.evaluation import metrics, popularity_ranks
from plr.prepare.synthetic import generate
from plr.serving import Recommender
from plr.serving.evaluate import evaluate_run
from plr.training import train

LENGTH = 12


@pytest.fixture(scope="module")
def interests(tmp_path_factory):
    """200 users with two to four interests each among 120 items: some 2800 training rows."""
    path = tmp_path_factory.mktemp("systems") / "interests.csv"
    generate(path, users=200, items=120, interests=4)
    return path


def config(data, out, **changes):
    values = {
        "data": str(data), "out": str(out), "dim": 16, "ffn_dim": 16, "layers": 1, "core_layers": 1, "mean_steps": 3,
        "max_length": LENGTH, "input_dropout": 0.1, "hidden_dropout": 0.3, "attention_dropout": 0.3, "lr": 0.01,
        "batch_size": 256, "epochs": 4, "progress": False, "accelerator": "cpu", "threads": 1, **changes,
    }  # fmt: skip
    return Config(**values)


@pytest.fixture(scope="module")
def runs(interests, tmp_path_factory):
    """Each method's run, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(method):
        if method not in made:
            made[method] = train(config(interests, folder / method, method=method))
        return folder / method, made[method]

    return run


@pytest.mark.parametrize("method", ["erl", "prl", "lares"])
def test_it_beats_popularity_by_half_and_is_the_same_when_loaded(method, runs, interests):
    folder, result = runs(method)
    dataset = prepare(interests)
    rows = dataset.rows("test", LENGTH)
    targets = rows.batch(torch.arange(len(rows))).targets
    popular = metrics(popularity_ranks(dataset.popularity(), targets))
    assert result["test"]["ndcg@10"] > 1.5 * popular["ndcg@10"], (result["test"], popular)

    assert evaluate_run(folder).metrics["ndcg@10"] == pytest.approx(result["test"]["ndcg@10"], abs=1e-12)
    recommender = Recommender.load(folder)
    history = [str(item) for item in dataset.item_ids[:5]]
    (answer,), (long,) = recommender.recommend([history], k=3), recommender.recommend([history * 9], k=3)
    assert len(answer) == len(long) == 3
    scores = [each.score for each in answer]
    assert scores == sorted(scores, reverse=True)
