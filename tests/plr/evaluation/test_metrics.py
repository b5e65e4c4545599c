from __future__ import annotations

import io
import json
import math

import polars as pl
import pytest
import torch
from rich.console import Console

from plr.cli.tables import metrics_table
from plr.evaluation import Ranking, load_ranking, metrics, save_ranking, write_metrics
from plr.evaluation.metrics import metric_of_rows


def test_metrics_of_known_ranks():
    # Ranks 1, 3 and 20, cut at 1, 3 and 10.
    result = metrics([1.0, 3.0, 20.0], ks=(1, 3, 10))
    assert result == pytest.approx(
        {
            "recall@1": 1 / 3,
            "ndcg@1": 1 / 3,
            "mrr@1": 1 / 3,
            "hr@1": 1 / 3,
            "recall@3": 2 / 3,
            "ndcg@3": 1.5 / 3,
            "mrr@3": (1 + 1 / 3) / 3,
            "hr@3": 2 / 3,
            "recall@10": 2 / 3,
            "ndcg@10": 1.5 / 3,
            "mrr@10": (1 + 1 / 3) / 3,
            "hr@10": 2 / 3,
            "mrr": (1 + 1 / 3 + 1 / 20) / 3,
        },
        rel=1e-15,
    )


def test_fractional_ranks_count_up_to_k_and_no_further():
    result = metrics(torch.tensor([9.5, 10.0, 10.5], dtype=torch.float64), ks=(10,))
    assert result["recall@10"] == pytest.approx(2 / 3, rel=1e-15)
    assert result["ndcg@10"] == pytest.approx((1 / math.log2(10.5) + 1 / math.log2(11)) / 3, rel=1e-15)
    assert result["mrr@10"] == pytest.approx((1 / 9.5 + 1 / 10) / 3, rel=1e-15)


def test_the_default_cut_offs_are_10_and_20():
    assert set(metrics([1.0])) == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "hr") for k in (10, 20)} | {
        "mrr"
    }


@pytest.mark.parametrize("ranks", [[], [0.5], [float("nan")], [float("inf")], [[1.0]]])
def test_ranks_that_are_none_are_refused(ranks):
    with pytest.raises(ValueError, match="ranks"):
        metrics(ranks)


def test_a_cut_off_below_one_is_refused():
    with pytest.raises(ValueError, match="cut-off"):
        metrics([1.0], ks=(0,))


@pytest.mark.parametrize("rows", [0, 3])
def test_a_ranking_comes_back_from_its_file(tmp_path, rows):
    ranking = Ranking(torch.arange(rows), torch.arange(rows) * 7, torch.arange(rows, dtype=torch.float64) / 2 + 1)
    user_ids, item_ids = pl.Series([f"u{n}" for n in range(5)]), pl.Series([f"i{n}" for n in range(20)])
    save_ranking(tmp_path / "ranks.parquet", ranking, user_ids, item_ids)
    frame = pl.read_parquet(tmp_path / "ranks.parquet")
    assert frame["user_id"].to_list() == [f"u{n}" for n in range(rows)]
    assert frame["item_id"].to_list() == [f"i{n * 7}" for n in range(rows)]
    loaded = load_ranking(tmp_path / "ranks.parquet")
    for name in ("users", "targets", "ranks"):
        assert torch.equal(getattr(loaded, name), getattr(ranking, name))
        assert getattr(loaded, name).dtype == getattr(ranking, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.parquet"]


def test_metrics_come_back_from_their_file(tmp_path):
    values = {"valid": {"ndcg@10": 0.1}, "test": {"ndcg@10": 1 / 3, "n": 7}, "seeds": [1, 2]}
    write_metrics(tmp_path / "metrics.json", values)
    assert json.loads((tmp_path / "metrics.json").read_text()) == values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(float("nan")).item()])
def test_metrics_that_are_not_finite_are_refused_by_name_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"metrics.test.ndcg@10\[1\] is"):
        write_metrics(tmp_path / "metrics.json", {"test": {"ndcg@10": [0.5, value]}})
    assert not list(tmp_path.iterdir())


def render(table) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_the_best_of_each_column_in_bold():
    text = render(
        metrics_table(
            {
                "popularity": {"recall@10": 0.01, "ndcg@10": 0.5},
                "plr [large]": {"recall@10": 0.02, "ndcg@10": 0.25, "recall@20": 0.03},
            },
            title="Test",
        )
    )
    for header in ("System", "Recall@10", "NDCG@10", "Recall@20", "NDCG@20", "plr [large]"):
        assert header in text
    bold = "\x1b[1m"
    assert [bold + value in text for value in ("0.0100", "0.0200", "0.5000", "0.2500", "0.0300")] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert "–" in text


def test_values_that_look_equal_are_both_bold_and_a_system_alone_is_not():
    text = render(metrics_table({"a": {"ndcg@10": 0.10001}, "b": {"ndcg@10": 0.10002}}, columns=("ndcg@10",)))
    assert text.count("\x1b[1m0.1000") == 2
    assert "\x1b[1m0.1" not in render(metrics_table({"a": {"ndcg@10": 0.1}}, columns=("ndcg@10",)))
    assert metrics_table({}).row_count == 0


def test_a_cut_off_beyond_all_ranks_is_refused():
    """PyTorch compares with 64 bits."""
    with pytest.raises(ValueError, match=r"a cut-off must be at least 1 and below 10\^18; found 'ndcg@10{18}'"):
        metric_of_rows([1.0], f"ndcg@{10**18}")
