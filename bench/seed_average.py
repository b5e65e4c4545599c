"""The mean of several runs' distributions, ranked as one system: the control for what a mixture inside one model gives.

    python -m bench.seed_average runs/sasrec-0 runs/sasrec-1 --against runs/plr
    python -m bench.seed_average runs/sasrec-0 runs/sasrec-1 --against runs/plr-0 runs/plr-1

Runs of one data set, of methods that score by one state or by a mixture, are taken as the components of a mixture of
equal weights, of p(v) = Σ_r p_r(v) / R. Ranking is exact and the tie rule that of every evaluation: the runs' item
vectors stand side by side, [V, Σ d], each state in its own columns. Prints the metrics of the validation and
test rows and, per user, the differences to another run, or to the mean of several, with the intervals and p-values of
`plr compare`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.records import write_record
from plr.data import Batch
from plr.evaluation import Ranking, compare, evaluation_batches, load_ranking, metrics, rank_rows
from plr.inputs import load_dataset
from plr.models.scoring import ItemScorer
from plr.runs import RunFolder
from plr.serving import Recommender


class MeanOfRuns(nn.Module):
    """Scores as a recommender does, by the mean of several models' distributions.

    Args:
        models: of the same items.
        temperatures: of each one's softmax where it scores by a single state; a mixture has its own.
    """

    def __init__(self, models: Sequence[Any], temperatures: Sequence[float]):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.temperatures = list(temperatures)

    def item_table(self) -> Tensor:
        """Return the items' vectors of all models side by side, [V, Σ d]."""
        self._tables = [model.item_table() for model in self.models]
        return torch.cat([model.candidates(table) for model, table in zip(self.models, self._tables, strict=True)], 1)

    def candidates(self, table: Tensor) -> Tensor:
        """Return the table."""
        return table

    def scorer(self, batch: Batch, table: Tensor) -> ItemScorer:
        """Return the mixture of all components of all models."""
        parts, weights, first = [], [], 0
        for model, own, temperature in zip(self.models, self._tables, self.temperatures, strict=True):
            scorer = model.scorer(batch, own)
            states, log_weights = scorer.states, scorer.log_weights
            if log_weights is None:
                states, log_weights = states[:, None], states.new_zeros(len(states), 1)
            else:
                temperature = scorer.temperature
            wide = states.new_zeros(*states.shape[:2], table.shape[1])  # [B, C, Σ d]
            wide[:, :, first : first + states.shape[2]] = states / temperature
            first += states.shape[2]
            parts.append(wide)
            weights.append(log_weights)
        log_weights = torch.cat(weights, dim=1)
        return ItemScorer(torch.cat(parts, dim=1), log_weights - torch.tensor(float(len(self.models))).log())


def load_mean(paths: Sequence[Path]) -> tuple[MeanOfRuns, list[Recommender]]:
    """Load runs of one data set.

    Raises:
        SystemExit: they differ in their items or in how histories are read.
    """
    recommenders = [Recommender.load(path) for path in paths]
    first = recommenders[0]
    for path, other in zip(paths, recommenders, strict=True):
        for name in ("max_length", "split", "exclude_seen"):
            own, found = getattr(first.config, name), getattr(other.config, name)
            if own != found:
                raise SystemExit(f"{path}: {name} {found}; {paths[0]} has {own}")
        if other.item_ids != first.item_ids:
            raise SystemExit(f"{path}: other items than {paths[0]}")
    mean = MeanOfRuns([each.model for each in recommenders], [each.config.temperature for each in recommenders])
    return mean, recommenders


def rank(paths: Sequence[Path], splits: Iterable[str] = ("valid", "test")) -> dict[str, Ranking]:
    """Rank the rows of the splits by the mean of the runs."""
    mean, recommenders = load_mean(paths)
    config = recommenders[0].config
    dataset = load_dataset(config)
    found = {}
    for split in splits:
        batches = evaluation_batches(dataset.rows(split, config.max_length), config.eval_batch_size, "cpu")
        found[split] = rank_rows(mean, batches, exclude_seen=config.exclude_seen)  # type: ignore[arg-type]
    return found


def differences(one: Ranking, other: Ranking, named: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return by how much the other is above the one in each named metric, with interval and p-value."""
    names = ("difference", "low", "high", "p_value")
    found = {metric: compare([other], [one], metric=metric) for metric in named}
    return {metric: {name: getattr(each, name) for name in names} for metric, each in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", type=Path, nargs="+", help="a run of the same rows, or several: their mean")
    parser.add_argument("--metrics", nargs="+", default=["ndcg@10"], help="of the differences")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    arguments = parser.parse_args()
    found = rank(arguments.runs)
    result: dict[str, Any] = {"runs": [path.name for path in arguments.runs]}
    result |= {split: metrics(ranking.ranks, (10, 20)) for split, ranking in found.items()}
    if arguments.against is not None:
        one = len(arguments.against) == 1
        other = load_ranking(RunFolder(arguments.against[0]).ranks("test")) if one else rank(arguments.against)["test"]
        against = ", ".join(path.name for path in arguments.against)
        for metric, difference in differences(found["test"], other, arguments.metrics).items():
            result[f"{against} - this, {metric}"] = difference
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        write_record(arguments.out, result)


if __name__ == "__main__":
    main()
