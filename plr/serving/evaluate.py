"""Measure a finished run again: on its own data or on another file, at any K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from plr.data import LengthGroupedBatches, Rows
from plr.data.held_out import begins_in_training, last_trained
from plr.data.renumber import renumber
from plr.errors import ConfigError, DataError, shortened
from plr.evaluation import (
    SEGMENTS,
    Labels,
    ListMetrics,
    Ranking,
    Segment,
    evaluation_batches,
    history_labels,
    metrics,
    novelty_labels,
    popularity_labels,
    rank_rows,
    ranking_progress,
    sampled_ranks,
    segment_metrics,
)
from plr.inputs import load_dataset
from plr.options import EACH_A_RANK
from plr.runs import RunFolder
from plr.serving import Recommender
from plr.serving.engine import why_not
from plr.serving.engine_scorer import engine_scorer
from plr.serving.ragged import Ragged


@dataclass(frozen=True)
class Evaluation:
    """A run's test metrics and what they were measured on.

    Attributes:
        metrics: recall@k, ndcg@k, mrr@k, hr@k for each k, and mrr.
        ks: the cut-offs.
        rows: how many test rows there were.
        items: V, how many items there are.
        exclude_seen: whether those of a row's history were left out of its ranking.
        data: the file.
        notes: what the reader of the figures should know.
        segments: by what rows were told apart, the rule and the metrics of each segment.
        lists: metrics of the recommended lists.
        sampled: metrics of the ranks among sampled items.
    """

    metrics: dict[str, float]
    ks: tuple[int, ...]
    rows: int
    items: int
    exclude_seen: bool
    data: str
    notes: list[str]
    segments: dict[str, tuple[str, list[Segment]]] = field(default_factory=dict)
    lists: dict[str, float] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)


def evaluate_run(
    path: Path,
    data: str | None = None,
    ks: tuple[int, ...] | None = None,
    exclude_seen: bool | None = None,
    text_vectors: str | None = None,
    *,
    device: str = "cpu",
    by: Sequence[str] = (),
    history_edges: Sequence[int] | None = None,
    lists: bool = False,
    sampled: int | None = None,
    seed: int = 0,
    rank_with: str | None = None,
    data_format: str | None = None,
) -> Evaluation:
    """Rank the test rows with a finished run's weights.

    Args:
        path: the run's folder.
        data: another file, read with the run's options; items that the run does not know are left out and counted.
        ks: the cut-offs; None takes the run's.
        exclude_seen: do not rank items of the history; None does as the run did.
        text_vectors: a folder of text vectors with items that the run does not know, or knows without a text, for an
            inductive unisrec run.
        device: where the model computes and the rows are ranked.
        by: metrics of parts of the rows: history, popularity or novelty.
        history_edges: as in `history_labels`.
        lists: also the metrics of the lists that are recommended; the items of `exclude_seen` never come in them.
        sampled: also rank among so many sampled items; None: do not.
        seed: of that sample.
        rank_with: what computes the users' states, model or engine; None does as the run did.
        data_format: of `data`; None: the run's.

    Raises:
        ConfigError: a cut-off or `sampled` is below 1, history edges are not ascending, or `by` names nothing known.
        RunError: popularity is needed, and neither the run nor its data say it.
        FileNotFoundError: there is no finished run.
        DataError: the run's own data have changed since, or the data have no test row.
    """
    by = tuple(by)
    if exclude_seen is not None and not isinstance(exclude_seen, (bool, np.bool_)):  # "no" would be taken for true
        raise ConfigError(f"exclude_seen must be True, False or None; found {shortened(exclude_seen)}")
    if ks is not None and (not ks or min(ks) < 1):
        raise ConfigError(f"ks must be positive, one at least; found {list(ks)}")
    if ks is not None and not EACH_A_RANK.holds(ks):
        raise ConfigError(f"ks must be {EACH_A_RANK.accepted}; found {list(ks)}")
    if set(by) - set(SEGMENTS):
        raise ConfigError(f"by must be of {', '.join(SEGMENTS)}; found {', '.join(by)}")
    if history_edges is not None:
        if "history" not in by:
            raise ConfigError("history_edges cuts rows by history: give --by history with it")
        try:
            history_labels(np.ones(1, np.int64), history_edges)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if sampled is not None and (not isinstance(sampled, Integral) or isinstance(sampled, bool)):
        raise ConfigError(f"sampled must be a whole number; found {shortened(sampled)}")
    if sampled is not None and sampled < 1:
        raise ConfigError(f"sampled must be at least 1; found {sampled}")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed must be a whole number, 0 or more; found {shortened(seed)}")
    if seed and sampled is None:
        raise ConfigError(f"seed is of sampled, which is missing; found {seed}")
    if rank_with not in (None, "model", "engine"):
        raise ConfigError(f"rank_with must be model or engine; found {rank_with!r}")
    recommender = Recommender.load(path, device, text_vectors=text_vectors)
    config = recommender.config
    dataset = load_dataset(config, data, Path(path), data_format)
    notes = list(dataset.report.get("notes", []))
    if data is None and dataset.content_hash != (config.provenance or {}).get("data_hash"):
        raise DataError(
            f"{config.data} has changed since {path} was trained; give it as --data to measure on it all the same"
        )
    if data is None and text_vectors is None and dataset.item_ids.to_list() != recommender.item_ids:
        raise DataError(
            f"the items of {config.data} are read otherwise than when {path} was trained (white space around ids is "
            "left out now); give it as --data to measure on it all the same"
        )
    item_features = dataset.item_features
    read_ids = dataset.item_ids
    if data is not None or text_vectors is not None:
        dataset = renumber(dataset, recommender.item_ids)
        unknown = dataset.report["unknown_items"]
        if unknown["interactions"]:
            notes.append(
                f"{unknown['interactions']} interactions with items unknown to the run were left out, "
                f"and with them {unknown['rows']['test']} test rows"
            )
    if data is not None:
        notes += _trained_on(RunFolder(Path(path)).read_metrics().get("data", {}), dataset.report, config.refit)
    rows = dataset.rows("test", config.max_length)
    if not len(rows):
        raise DataError(f"{data or config.data}: there is no test row that the run could rank")
    # As `evaluation_batches` ranks them.
    order = torch.cat(list(LengthGroupedBatches(rows.lengths, config.eval_batch_size, shuffle=False)))
    batches = evaluation_batches(rows, config.eval_batch_size, "cpu")
    exclude_seen = config.exclude_seen if exclude_seen is None else exclude_seen
    scorer_of = engine_scorer if (rank_with or config.rank_with) == "engine" else None
    if scorer_of is not None and (reason := why_not(recommender.model)) is not None:
        notes.append(f"ranked with the model, for the engine cannot take it: {reason}")
    with ranking_progress("Ranking test", len(rows), shown=config.progress) as advance:
        ranking = rank_rows(
            recommender.model, batches, exclude_seen=exclude_seen, on_batch=advance, scorer_of=scorer_of
        )
    ks = tuple(ks or config.ks)
    rows = rows.take(order)
    segments = {}
    for name in dict.fromkeys(by):
        labels = _labels(name, rows, ranking, recommender, history_edges)
        segments[name] = (labels.rule, segment_metrics(ranking, labels, ks))
    of_lists = {}
    if lists:
        categories = _categories(item_features, read_ids, recommender.item_ids)
        if categories is None:
            notes.append("no diversity: the data have no categories of items (`plr prepare --items` reads them)")
        with ranking_progress("Recommending", len(rows), shown=config.progress) as advance:
            found = ListMetrics(recommender.popularity, ks, categories)
            for first in range(0, len(rows), config.eval_batch_size):
                _recommend(recommender, rows, first, config.eval_batch_size, max(ks), exclude_seen, found)
                advance(min(config.eval_batch_size, len(rows) - first))
        of_lists = found.results()
    return Evaluation(
        metrics=metrics(ranking.ranks, ks),
        ks=ks,
        rows=len(rows),
        items=len(recommender.item_ids),
        exclude_seen=bool(exclude_seen),
        data=data or config.data,
        notes=notes,
        segments=segments,
        lists=of_lists,
        sampled={} if sampled is None else _sampled(rows, ranking, recommender, exclude_seen, sampled, seed, ks),
    )


def _trained_on(own: Mapping[str, Any], other: Mapping[str, Any], refit: bool) -> list[str]:
    """Say where test rows of other data, split by time, lie in the time that the run was trained on.

    Args:
        own: the report of the run's data.
        other: that of the other data.
        refit: whether the run was trained on its validation rows too.
    """
    begin = begins_in_training("test", other, own, refit)
    if begin is None:
        return []
    until = last_trained(own, refit)
    return [
        f"the test rows of these data begin at {begin}, and the run was trained on targets up to {until}: "
        f"rows of its own data among them are no test; prepare the data with a test_time after {until}"
    ]


def _labels(
    name: str, rows: Rows, ranking: Ranking, recommender: Recommender, history_edges: Sequence[int] | None
) -> Labels:
    if name == "history":
        return history_labels((rows.stops.long() - rows.offsets[rows.users]).numpy(), history_edges)
    cut = popularity_labels if name == "popularity" else novelty_labels
    return cut(recommender.popularity, ranking.targets.numpy())


def _recommend(
    recommender: Recommender, rows: Rows, first: int, count: int, k: int, exclude_seen: bool, found: ListMetrics
) -> None:
    """Add the lists of the rows from `first` on to what is found."""
    batch = rows.batch(torch.arange(first, min(first + count, len(rows))))
    real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
    offsets = np.concatenate([np.zeros(1, np.int64), batch.lengths.numpy().cumsum()])
    histories = Ragged(batch.item_ids[real].numpy(), offsets)
    _, items = recommender.rank(histories, min(k, len(recommender.item_ids)), exclude_seen=exclude_seen)
    found.update(items, batch.targets.numpy())


def _sampled(
    rows: Rows, ranking: Ranking, recommender: Recommender, exclude_seen: bool, sampled: int, seed: int,
    ks: Sequence[int],
) -> dict[str, float]:  # fmt: skip
    assert ranking.equal is not None
    equal, others = ranking.equal.numpy(), np.full(len(rows), len(recommender.item_ids) - 1)
    greater = np.rint(ranking.ranks.numpy() - 1 - equal / 2).astype(np.int64)
    if exclude_seen:
        for row in range(len(rows)):
            seen = rows.items[int(rows.stops[row]) - int(rows.lengths[row]) : int(rows.stops[row])]
            others[row] -= len(np.setdiff1d(seen.numpy(), ranking.targets[row].numpy()))
    return metrics(sampled_ranks(greater, equal, others, min(sampled, len(recommender.item_ids)), seed), ks)


def _categories(path: Path | None, read_ids: pl.Series, item_ids: list[str]) -> list[np.ndarray] | None:
    """Return the numbers of each of the run's items' categories, or None where the data have none.

    Args:
        path: the prepared folder's items, in the order of read_ids.
        read_ids: the ids of the data.
        item_ids: the ids of the run.
    """
    if path is None or "categories" not in pl.read_parquet_schema(path):
        return None
    column = pl.read_parquet(path, columns=["categories"], glob=False)["categories"].to_list()
    number: dict[str, int] = {}
    of_id = {
        item: np.unique([number.setdefault(each, len(number)) for each in names or ()]).astype(np.int64)
        for item, names in zip(read_ids.to_list(), column, strict=True)
    }
    none = np.empty(0, np.int64)
    return [of_id.get(item, none) for item in item_ids]
