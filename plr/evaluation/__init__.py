"""Ranking over all items, metrics, significance and result files."""

from plr.errors import EvaluationError
from plr.evaluation.batches import evaluation_batches
from plr.evaluation.lists import ListMetrics
from plr.evaluation.metrics import metrics
from plr.evaluation.popularity import popularity_ranks
from plr.evaluation.progress import ranking_progress
from plr.evaluation.ranking import Ranking, rank_rows, target_ranks
from plr.evaluation.results import load_ranking, save_ranking, write_metrics
from plr.evaluation.sampled import sampled_ranks
from plr.evaluation.segments import (
    SEGMENTS,
    Labels,
    Segment,
    history_labels,
    novelty_labels,
    popularity_labels,
    segment_metrics,
)
from plr.evaluation.significance import Comparison, compare, holm, paired_comparison

__all__ = [
    "SEGMENTS",
    "Comparison",
    "EvaluationError",
    "Labels",
    "ListMetrics",
    "Ranking",
    "Segment",
    "compare",
    "evaluation_batches",
    "history_labels",
    "holm",
    "load_ranking",
    "metrics",
    "novelty_labels",
    "paired_comparison",
    "popularity_labels",
    "popularity_ranks",
    "rank_rows",
    "ranking_progress",
    "sampled_ranks",
    "save_ranking",
    "segment_metrics",
    "target_ranks",
    "write_metrics",
]
