"""RecTools' own metrics on the frame that we recommend: the figures of `plr evaluate`. RecTools is no dependency."""

import polars as pl
import pytest

import plr

rectools = pytest.importorskip("rectools", reason="RecTools is not installed: pip install rectools")
metrics = pytest.importorskip("rectools.metrics")
pandas = pytest.importorskip("pandas")

K = 10


@pytest.fixture(scope="module")
def judged():
    """A small system, its lists and its targets as RecTools takes them, and what the system was trained on."""
    rows = [(f"u{u:02}", f"i{(u * 3 + n * n + n * (u % 5)) % 40}", n) for u in range(60) for n in range(8)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    model = plr.SASRec(dim=8, heads=2, ffn_dim=8, epochs=2, batch_size=64, max_length=6, threads=1, lr=0.01,
                       split="leave-one-out", exclude_seen=False, ks=[K]).fit(frame)  # fmt: skip
    before, held_out = frame.filter(pl.col("timestamp") < 7), frame.filter(pl.col("timestamp") == 7)
    found = model.recommend(before, k=K)
    lists = found.rename({"item": rectools.Columns.Item})
    # What popularity counts: neither validation nor test rows.
    trained = frame.filter(pl.col("timestamp") < 6)
    return model, *(pandas.DataFrame(each.to_dict(as_series=False)) for each in (lists, held_out, trained))


def test_ranks_and_lists_agree(judged):
    model, lists, targets, trained = judged
    ours = plr.evaluate(model, lists=True)
    catalog = model.recommender.item_ids
    theirs = {
        f"recall@{K}": metrics.Recall(K).calc(lists, targets),
        f"ndcg@{K}": metrics.NDCG(K, divide_by_achievable=True).calc(lists, targets),
        f"mrr@{K}": metrics.MRR(K).calc(lists, targets),
    }
    assert 0 < theirs[f"ndcg@{K}"] < 1
    assert {name: ours.metrics[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)
    theirs = {
        f"precision@{K}": metrics.Precision(K).calc(lists, targets),
        f"map@{K}": metrics.MAP(K).calc(lists, targets),
        f"coverage@{K}": metrics.CatalogCoverage(K, normalize=True).calc(lists, catalog),
        f"popularity@{K}": metrics.AvgRecPopularity(K).calc(lists, trained),
    }
    assert {name: ours.lists[name] for name in theirs} == pytest.approx(theirs, rel=1e-6)
