"""Every system from files to recommendations: it learns, and its run folder is enough to use it."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import plr
from plr.config import Config
from plr.data import prepare
from plr.data.renumber import renumber
from plr.errors import DataError
from plr.evaluation import evaluation_batches, metrics, popularity_ranks, rank_rows
from plr.prepare.synthetic import generate
from plr.runs import RunFolder
from plr.serving.evaluate import evaluate_run
from plr.text import TextVectors, embed_text
from plr.training import RunError, train
from tests.plr.training.test_resume import killed_in_mid_epoch

USERS, ITEMS, INTERESTS = 800, 80, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Interactions, and features and texts that tell an item's interest and its place on the interest's ring."""
    folder = tmp_path_factory.mktemp("files")
    generate(folder / "data.csv", users=USERS, items=ITEMS, interests=INTERESTS, seed=0)
    # The generator's first draw says which item lies where: ring c is the places c, c + interests, ...
    item_of_place = np.random.Generator(np.random.PCG64(0)).permutation(ITEMS)
    features, texts = {}, ["item\ttitle"]
    for place, number in enumerate(item_of_place.tolist()):
        ring, turn = place % INTERESTS, place // INTERESTS
        ahead = (turn + 1) % (ITEMS // INTERESTS)
        item = f"i{number:02d}"
        features[item] = {"interest": f"ring {ring}", "near": [f"{ring}-{turn}", f"{ring}-{ahead}"]}
        texts.append(f"{item}\tring{ring} place{ring}x{turn} place{ring}x{ahead}")
    dropped = item_of_place[:2].tolist()
    for number in dropped:
        del features[f"i{number:02d}"]
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "texts.tsv").write_text("\n".join(texts) + "\n")
    embed_text(folder / "texts.tsv", folder / "vectors")
    return folder


@pytest.fixture(scope="module")
def popularity(files):
    dataset = prepare(files / "data.csv")
    return metrics(popularity_ranks(dataset.popularity(), dataset.target_items("test")))["ndcg@10"]


FEATURES, VECTORS = {"features": "features.json"}, {"text_vectors": "vectors", "experts": 3}
WHOLE, PREFIX = {"epochs": 4, "batch_size": 32}, {"epochs": 1, "batch_size": 256}  # some ten targets in a whole row
# A mask has no item of its own to start from: Cloze training is known to need many more epochs.
CLOZE = {
    "backbone": "bert4rec-cloze", "epochs": 25, "patience": 25, "layers": 2, "mask_probability": 0.3, "lr": 0.003,
    "input_dropout": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "batch_size": 32,
}  # fmt: skip
SYSTEMS = {
    "sasrec": WHOLE,
    "sasrec-features": {**WHOLE, **FEATURES},
    "bert4rec": {"backbone": "bert4rec", **PREFIX},
    "bert4rec-plr": {"backbone": "bert4rec", "method": "plr", **PREFIX},
    "bert4rec-cloze": CLOZE,
    "unisrec-inductive": {"backbone": "unisrec", **WHOLE, **VECTORS},
    "unisrec-transductive": {"backbone": "unisrec", "unisrec_mode": "transductive", **WHOLE, **VECTORS},
    # Consistency, the default, learns more slowly: two epochs were too few.
    "unisrec-plr": {"backbone": "unisrec", "method": "plr", **PREFIX, **VECTORS, "epochs": 4},
}


def configuration(files, out, name, **changes):
    values = {
        "data": "data.csv", "out": str(out), "method": "base", "dim": 32, "ffn_dim": 32, "layers": 1, "max_length": 20,
        "hidden_dropout": 0.1, "attention_dropout": 0.1, "input_dropout": 0.1, "lr": 0.01, "progress": False,
        "accelerator": "cpu", "threads": 1, **SYSTEMS[name], **changes,
    }  # fmt: skip
    for source in ("data", "features", "text_vectors"):
        if source in values:
            values[source] = str(files / values[source])
    return Config(**values)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_learns_and_its_folder_alone_recommends(name, files, popularity, tmp_path):
    """Test NDCG@10 of at least twice popularity's, on data made of several interests per user."""
    sources = tmp_path / "sources"
    shutil.copytree(files, sources)
    result = train(configuration(sources, tmp_path / "run", name))
    assert result["test"]["ndcg@10"] > 2 * popularity
    for source in ("features.json", "vectors"):
        (sources / source).rename(sources / f"moved-{source}")
    recommender = plr.Recommender.load(tmp_path / "run")
    (answer,) = recommender.recommend([["i03", "i04"]], 5)
    assert len({each.item for each in answer}) == 5
    again = evaluate_run(tmp_path / "run")
    assert again.metrics["ndcg@10"] == pytest.approx(result["test"]["ndcg@10"], rel=1e-6)
    other = evaluate_run(tmp_path / "run", data=str(sources / "data.csv"))
    assert other.rows == result["test"]["rows"]


def test_what_is_missing_about_items_is_counted(files, tmp_path):
    with pytest.warns(UserWarning, match="2 of 80 items have no value in feature field 'interest'; they share one"):
        result = train(configuration(files, tmp_path / "run", "sasrec-features", epochs=1))
    assert result["items"]["features"]["interest"] == {"values": INTERESTS, "items_without": 2}
    result = train(configuration(files, tmp_path / "text", "unisrec-inductive", epochs=1))
    assert result["items"]["text"]["items_without"] == 0


def interrupted(monkeypatch, configuration):
    """Train until the test metrics would be written: all that is missing is the end."""
    with monkeypatch.context() as patch:
        patch.setattr("plr.training.trainer.write_metrics", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(configuration)


@pytest.mark.parametrize(("name", "source"), [("sasrec-features", "features.json"), ("unisrec-inductive", "vectors")])
def test_a_run_goes_on_without_its_sources_but_not_with_others(name, source, files, tmp_path, monkeypatch):
    sources = tmp_path / "sources"
    shutil.copytree(files, sources)
    config = configuration(sources, tmp_path / "run", name, epochs=1)
    interrupted(monkeypatch, config)
    if source == "vectors":
        shutil.rmtree(sources / source)
        embed_text(files / "texts.tsv", sources / source, dim=7)
    else:
        features = json.loads((files / source).read_text())
        next(iter(features.values()))["interest"] = "another"
        (sources / source).write_text(json.dumps(features))
    with pytest.raises(RunError, match="holds an unfinished run with other item features or text vectors"):
        train(config)
    (sources / source).rename(sources / "away")
    assert train(config)["epochs"] == 1
    run = RunFolder(tmp_path / "run")
    data = run.read_item_data(Config.load(run.config))
    if data.text is not None:
        data.text.present[0] = False
    else:
        data.features[0].values[0] += 1
    data.save(run.item_data)
    with pytest.raises(DataError, match="not the item features or text vectors that the run was made with"):
        plr.Recommender.load(run.path)
    (tmp_path / "run" / "items.safetensors").unlink()
    with pytest.raises(DataError, match="the run's item features or text vectors are missing"):
        plr.Recommender.load(tmp_path / "run")


def test_a_killed_cloze_run_ends_as_an_uninterrupted_one(files, tmp_path, monkeypatch):
    """Its masks are drawn from the seed of the step, not of the process."""
    expected = train(configuration(files, tmp_path / "whole", "bert4rec-cloze", epochs=3))
    resumed = configuration(files, tmp_path / "resumed", "bert4rec-cloze", epochs=3)
    killed_in_mid_epoch(resumed, monkeypatch, epoch=2, batch=1)
    assert train(resumed)["test"] == expected["test"]
    one, two = (pl.read_parquet(tmp_path / run / "ranks_test.parquet") for run in ("whole", "resumed"))
    assert one.equals(two)


def test_recommending_after_a_full_history_leaves_room_for_the_mask(files, tmp_path):
    train(configuration(files, tmp_path / "run", "bert4rec-cloze", epochs=1))
    recommender = plr.Recommender.load(tmp_path / "run")
    history = [f"i{number % ITEMS:02d}" for number in range(50)]
    full, cut = recommender.recommend([history, history[-20:]], 3)
    assert [each.item for each in full] == [each.item for each in cut]
    assert recommender.model.encoder.max_length == 21
    assert torch.isfinite(torch.tensor([each.score for each in full])).all()
    assert Path(tmp_path / "run" / "model.safetensors").exists()


def test_items_that_come_after_training_are_ranked_from_their_text(files, tmp_path):
    """Eight of 80 items are taken out of the training data and come back by `embed-text --like`."""
    late = {f"i{number:02d}" for number in range(5, 80, 10)}
    interactions, texts = (files / "data.csv").read_text().splitlines(), (files / "texts.tsv").read_text().splitlines()
    (tmp_path / "early.csv").write_text("\n".join(row for row in interactions if row.split(",")[1] not in late) + "\n")
    (tmp_path / "early.tsv").write_text("\n".join(row for row in texts if row.split("\t")[0] not in late) + "\n")
    embed_text(tmp_path / "early.tsv", tmp_path / "vectors")
    embed_text(files / "texts.tsv", tmp_path / "new", like=tmp_path / "vectors")
    config = configuration(files, tmp_path / "run", "unisrec-inductive", text_vectors=str(tmp_path / "vectors"))
    config.epochs = 6
    config.data = str(tmp_path / "early.csv")
    train(config)

    without = evaluate_run(tmp_path / "run", data=str(files / "data.csv"))
    outcome = evaluate_run(tmp_path / "run", data=str(files / "data.csv"), text_vectors=str(tmp_path / "new"))
    assert without.notes
    assert not outcome.notes
    assert (without.items, outcome.items) == (72, 80)
    assert outcome.rows == prepare(files / "data.csv").report["rows"]["test"]

    recommender = plr.Recommender.load(tmp_path / "run", text_vectors=tmp_path / "new")
    dataset = renumber(prepare(files / "data.csv"), recommender.item_ids)
    rows = dataset.rows("test", 20)
    ranking = rank_rows(recommender.model, evaluation_batches(rows, 256, "cpu"))
    of_late = ranking.ranks[torch.tensor([recommender.item_ids[item] in late for item in ranking.targets.tolist()])]
    assert len(of_late) > 100
    # Chance: uniform in 1..80, mean 40.5, deviation 80/√12. Five standard errors better than that.
    assert of_late.mean() < 40.5 - 5 * 80 / 12**0.5 / len(of_late) ** 0.5
    (answer,) = recommender.recommend([["i05", "i06"]], 80)
    assert late <= {each.item for each in answer}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plr.Recommender.load(tmp_path / "run", text_vectors=tmp_path / "new")
    width = TextVectors.load(tmp_path / "vectors").vectors.shape[1]
    embed_text(files / "texts.tsv", tmp_path / "other", dim=width)
    with pytest.warns(UserWarning, match="other: 7[0-9] of 72 items have other text vectors than before"):
        plr.Recommender.load(tmp_path / "run", text_vectors=tmp_path / "other")

    embed_text(files / "texts.tsv", tmp_path / "narrow", dim=3)
    with pytest.raises(DataError, match="vectors of width 3; the run was made with width"):
        plr.Recommender.load(tmp_path / "run", text_vectors=tmp_path / "narrow")


def test_items_that_had_no_text_in_training_get_that_of_the_folder(files, tmp_path):
    """One item without a text at all, one whose text the encoder cannot read; the others keep their vectors."""
    texts = (files / "texts.tsv").read_text().splitlines()
    late = {"i05", "i15"}
    blank = ["i15\t" if row.startswith("i15\t") else row for row in texts if not row.startswith("i05\t")]
    (tmp_path / "early.tsv").write_text("\n".join(blank) + "\n")
    embed_text(tmp_path / "early.tsv", tmp_path / "vectors")
    embed_text(files / "texts.tsv", tmp_path / "all", like=tmp_path / "vectors")
    config = configuration(files, tmp_path / "run", "unisrec-inductive", text_vectors=str(tmp_path / "vectors"))
    config.epochs = 1
    with pytest.warns(UserWarning, match="2 of 80 items have no text vector"):
        train(config)

    before, after = (plr.Recommender.load(tmp_path / "run", text_vectors=path) for path in (None, tmp_path / "all"))
    assert before.item_ids == after.item_ids
    filled = torch.tensor([item_id in late for item_id in before.item_ids])
    assert torch.equal(before.model.items.present, ~filled)
    assert after.model.items.present.all()
    expected = TextVectors.load(tmp_path / "all").of_items(before.item_ids, tmp_path / "all").vectors
    assert torch.equal(after.model.items.vectors[filled], expected[filled])
    assert torch.equal(after.model.items.vectors[~filled], before.model.items.vectors[~filled])
    tables = [recommender.model.item_table() for recommender in (before, after)]
    assert torch.equal(tables[0][filled][0], tables[0][filled][1])  # one vector for all without a text
    assert not torch.isclose(tables[1][filled], tables[0][filled]).all(dim=1).any()

    plain, with_texts = (
        evaluate_run(tmp_path / "run", text_vectors=path) for path in (None, str(tmp_path / "all"))
    )  # the same rows and items, other scores
    assert (plain.rows, plain.items) == (with_texts.rows, with_texts.items)
    assert plain.metrics != with_texts.metrics
    with pytest.warns(UserWarning, match="has no item and no text beyond those that the run was made with"):
        same = evaluate_run(tmp_path / "run", text_vectors=str(tmp_path / "vectors"))
    assert same.metrics == plain.metrics


@pytest.mark.parametrize("name", ["sasrec", "unisrec-transductive"])
def test_a_run_that_knows_items_by_more_than_text_takes_no_new_ones(name, files, tmp_path):
    train(configuration(files, tmp_path / "run", name, epochs=1))
    with pytest.raises(DataError, match="only an inductive unisrec run knows an item by its text alone"):
        plr.Recommender.load(tmp_path / "run", text_vectors=files / "vectors")
