"""Measure a finished run again: on its own data or on another file, at any K."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plr.data.renumber import renumber
from plr.errors import ConfigError, DataError
from plr.evaluation import evaluation_batches, metrics, rank_rows, ranking_progress
from plr.inputs import load_dataset
from plr.serving import Recommender


@dataclass(frozen=True)
class Evaluation:
    """A run's test metrics and what they were measured on.

    Attributes:
        metrics: recall@k, ndcg@k, mrr@k, hr@k for each k, and mrr.
        ks: the cut-offs.
        rows: how many test rows there were.
        items: V, how many items each was ranked among.
        data: the file.
        notes: what the reader of the figures should know.
    """

    metrics: dict[str, float]
    ks: tuple[int, ...]
    rows: int
    items: int
    data: str
    notes: list[str]


def evaluate_run(
    path: Path,
    data: str | None = None,
    ks: tuple[int, ...] | None = None,
    exclude_seen: bool | None = None,
    text_vectors: str | None = None,
) -> Evaluation:
    """Rank the test rows with a finished run's weights.

    Args:
        path: the run's folder.
        data: another file, read with the run's options; items that the run does not know are left out and counted.
        ks: the cut-offs; None takes the run's.
        exclude_seen: do not rank items of the history; None does as the run did.
        text_vectors: a folder of text vectors with items that the run does not know, or knows without a text, for an
            inductive unisrec run.

    Raises:
        ConfigError: a cut-off is below 1.
        FileNotFoundError: there is no finished run.
        DataError: the run's own data have changed since, or the data have no test row.
    """
    if ks is not None and (not ks or min(ks) < 1):
        raise ConfigError(f"ks must be positive, one at least; found {list(ks)}")
    recommender = Recommender.load(path, text_vectors=text_vectors)
    config = recommender.config
    dataset = load_dataset(config, data, Path(path))
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
    if data is not None or text_vectors is not None:
        dataset = renumber(dataset, recommender.item_ids)
        unknown = dataset.report["unknown_items"]
        if unknown["interactions"]:
            notes.append(
                f"{unknown['interactions']} interactions with items unknown to the run were left out, "
                f"and with them {unknown['rows']['test']} test rows"
            )
    rows = dataset.rows("test", config.max_length)
    if not len(rows):
        raise DataError(f"{data or config.data}: there is no test row that the run could rank")
    batches = evaluation_batches(rows, config.eval_batch_size, "cpu")
    exclude_seen = config.exclude_seen if exclude_seen is None else exclude_seen
    with ranking_progress("Ranking test", len(rows), shown=config.progress) as advance:
        ranking = rank_rows(recommender.model, batches, exclude_seen=exclude_seen, on_batch=advance)
    ks = tuple(ks or config.ks)
    return Evaluation(
        metrics=metrics(ranking.ranks, ks),
        ks=ks,
        rows=len(rows),
        items=len(recommender.item_ids),
        data=data or config.data,
        notes=notes,
    )
