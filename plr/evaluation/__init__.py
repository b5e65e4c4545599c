"""Ranking over all items, metrics, significance and result files."""

from plr.errors import EvaluationError
from plr.evaluation.batches import evaluation_batches
from plr.evaluation.metrics import metrics
from plr.evaluation.popularity import popularity_ranks
from plr.evaluation.progress import ranking_progress
from plr.evaluation.ranking import Ranking, rank_rows, target_ranks
from plr.evaluation.results import load_ranking, save_ranking, write_metrics
from plr.evaluation.significance import Comparison, compare, holm, paired_comparison

__all__ = [
    "Comparison",
    "EvaluationError",
    "Ranking",
    "compare",
    "evaluation_batches",
    "holm",
    "load_ranking",
    "metrics",
    "paired_comparison",
    "popularity_ranks",
    "rank_rows",
    "ranking_progress",
    "save_ranking",
    "target_ranks",
    "write_metrics",
]
