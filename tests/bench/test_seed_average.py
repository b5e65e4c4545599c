"""The mean of runs' distributions is that: against the formula, and one run alone ranks as it did."""

import json

import pytest
import torch

from bench.seed_average import load_mean, main, rank
from plr.config import Config
from plr.evaluation import evaluation_batches, load_ranking, metrics
from plr.inputs import load_dataset
from plr.runs import RunFolder
from plr.training import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty users, each on a walk of its own length and stride among twelve items."""
    path = tmp_path_factory.mktemp("data") / "walks.txt"
    walks = [[(user + step * (1 + user % 3)) % 12 for step in range(5 + user % 4)] for user in range(40)]
    path.write_text("".join(f"u{user} {' '.join(map(str, walk))}\n" for user, walk in enumerate(walks)))
    return path


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A SASRec, another of another width, and a PLR, of the same rows."""
    folder = tmp_path_factory.mktemp("runs")
    common = {
        "data": str(data), "ffn_dim": 8, "max_length": 6, "layers": 1, "epochs": 1, "progress": False,
        "accelerator": "cpu", "threads": 1,
    }  # fmt: skip
    systems = [
        {"method": "base", "dim": 8, "exclude_seen": True},
        {"method": "base", "dim": 4, "exclude_seen": True, "seed": 1, "temperature": 0.5},
        {"method": "plr", "dim": 8, "exclude_seen": True, "streams": 2, "steps": 1},
    ]
    paths = [folder / str(number) for number in range(len(systems))]
    for path, options in zip(paths, systems, strict=True):
        train(Config(out=str(path), **common, **options))
    return paths


def test_scores_are_the_mean_of_the_distributions(runs):
    mean, recommenders = load_mean(runs)
    mean.eval()
    rows = load_dataset(recommenders[0].config).rows("test", 6)
    batch = next(iter(evaluation_batches(rows, 5, "cpu")))
    with torch.no_grad():
        scores = mean.scorer(batch, mean.item_table()).scores(mean.candidates(mean.item_table())).double()
        expected = []
        for recommender in recommenders:
            model = recommender.model
            own = model.scorer(batch, model.item_table())
            values = own.scores(model.candidates(model.item_table())).double()
            temperature = recommender.config.temperature if own.log_weights is None else 1.0
            expected.append((values / temperature).softmax(-1) if own.log_weights is None else values.exp())
        expected = torch.stack(expected).mean(0)
    assert expected.sum(-1).allclose(torch.ones(5).double(), atol=1e-5)
    torch.testing.assert_close(scores.exp(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_run_alone_ranks_as_it_did(runs, number):
    found = rank([runs[number]])
    for split, ranking in found.items():
        trained = load_ranking(RunFolder(runs[number]).ranks(split))
        assert torch.equal(ranking.users, trained.users)
        assert (ranking.ranks != trained.ranks).double().mean() < 0.05  # ties within rounding


def test_runs_of_other_rows_are_refused(runs, data, tmp_path):
    other = tmp_path / "other"
    train(
        Config(
            data=str(data), out=str(other), method="base", dim=8, ffn_dim=8, max_length=5, layers=1, epochs=1,
            progress=False, accelerator="cpu", threads=1,
        )
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"max_length 5; .* has 6"):
        load_mean([runs[0], other])


def test_the_command_prints_the_difference(runs, monkeypatch, capsys, tmp_path):
    out = tmp_path / "mean.json"
    monkeypatch.setattr("sys.argv", ["x", str(runs[0]), str(runs[1]), "--against", str(runs[2]), "--out", str(out)])
    main()
    assert "2 - this, ndcg@10" in capsys.readouterr().out
    assert out.exists()


def test_a_mean_against_a_mean(runs, monkeypatch, capsys, tmp_path):
    """Against several runs the difference is that of the two means' own metrics, in each metric that is named."""
    named = ["ndcg@10", "recall@20"]
    paths = [str(path) for path in runs]
    options = ["--against", *paths[1:], "--metrics", *named, "--out", f"{tmp_path}/a"]
    monkeypatch.setattr("sys.argv", ["x", *paths[:2], *options])
    main()
    found = json.loads((tmp_path / "a").read_text())
    one, other = (metrics(rank(those, ("test",))["test"].ranks, (10, 20)) for those in (runs[:2], runs[1:]))
    for metric in named:
        difference = found[f"1, 2 - this, {metric}"]["difference"]
        assert difference == pytest.approx(other[metric] - one[metric], abs=1e-6)  # as records round
        assert found["test"][metric] == pytest.approx(one[metric], abs=1e-6)
