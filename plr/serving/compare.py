"""Compare finished runs: systems by their seeds, on the same test rows, with intervals and corrected p-values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plr.config import Config
from plr.errors import ConfigError, RunError
from plr.evaluation import Comparison, Ranking, compare, holm, load_ranking
from plr.evaluation.metrics import metric_of_rows
from plr.files import sha256_of
from plr.models.registry import options_of_other_methods
from plr.runs import RunFolder

__all__ = ["BY_USER", "ComparedSystem", "compare_runs", "other_candidates"]

BY_USER = (
    "metrics are means over rows, differences means over users, each with the mean of its rows: users with many rows "
    "weigh more in the former"
)
"""Why a difference is not that of two metrics, for the notes of tables."""

# Beside the options of other methods: runs that differ in nothing else are one system. `data` may have moved; that the
# rows are the same is checked. `init` names the first phase's run, of each seed another: what that was made
# with counts.
NOT_THE_SYSTEM = {"seed", "data", "ks", "eval_batch_size", "rank_with", "init", "accelerator"}


@dataclass(frozen=True)
class ComparedSystem:
    """One system: its runs, what they measured, and how it differs from the first system.

    Attributes:
        name: backbone and method, and the options in which it differs from another system of that name.
        folders: of its runs.
        values: the test metrics of the runs, by metric.
        comparison: this system − the first; None for the first.
        p_value: of the comparison, Holm-corrected over all of them; None for the first.
        left_out: how many of a history's last items it did not rank; 0 without exclude_seen.
    """

    name: str
    folders: list[Path]
    values: Mapping[str, list[float]]
    comparison: Comparison | None = None
    p_value: float | None = None
    left_out: int = 0

    def mean(self, metric: str) -> float:
        """The metric's mean over the runs."""
        return statistics.mean(self.values[metric])

    def spread(self, metric: str) -> float | None:
        """The standard deviation over the runs, or None where there is one."""
        values = self.values[metric]
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class _System:
    """A system while its runs are collected."""

    config: Config
    folders: list[Path] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)


def compare_runs(
    paths: Sequence[str | Path],
    metrics: Sequence[str] = ("recall@10", "ndcg@10", "recall@20", "ndcg@20"),
    metric: str = "ndcg@10",
) -> list[ComparedSystem]:
    """Compare the test rankings of finished runs.

    Runs whose configurations differ in the seed, and in nothing that decides a result, are one system. Every further
    system is compared with the first by each user's `metric`: paired t-test over users of the runs' means, bootstrap
    interval over users and runs, p-values corrected by Holm.

    Args:
        paths: the runs' folders; the first one's system is what the others are compared with.
        metrics: to be shown for each system: recall@K, hr@K, ndcg@K, mrr@K or mrr.
        metric: to be compared by.

    Raises:
        ConfigError: a metric is none, a folder is given twice, two runs are of one system and seed, or all are of one
            system.
        RunError: the runs did not rank the same rows in the same way.
        FileNotFoundError: a folder holds no finished run.
        DataError: ranks that cannot be read.
    """
    try:
        for name in (*metrics, metric):
            metric_of_rows([1.0], name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not paths:
        raise ConfigError("there must be runs of two systems or more; none is given")
    systems = _collect([Path(path) for path in paths])
    if len(systems) < 2:
        raise ConfigError(
            f"there must be runs of two systems or more; the {len(paths)} given are one: {systems[0].config.title}"
        )
    names = _names([system.config for system in systems])
    first = systems[0]
    comparisons = []
    for system, name in zip(systems[1:], names[1:], strict=True):
        try:
            comparisons.append(compare(system.rankings, first.rankings, metric=metric))
        except ValueError as error:
            raise RunError(f"{names[0]} and {name} cannot be compared: {error}") from error
    p_values = [None, *map(float, holm([comparison.p_value for comparison in comparisons]))]
    return [
        ComparedSystem(
            name=name,
            folders=system.folders,
            values={
                each: [float(metric_of_rows(ranking.ranks, each).mean()) for ranking in system.rankings]
                for each in dict.fromkeys((*metrics, metric))
            },
            comparison=comparison,
            p_value=p_value,
            left_out=system.config.max_length if system.config.exclude_seen else 0,
        )
        for system, name, comparison, p_value in zip(systems, names, [None, *comparisons], p_values, strict=True)
    ]


def other_candidates(systems: Sequence[ComparedSystem]) -> str:
    """Return a sentence where the systems ranked other candidates, else nothing."""
    if len({system.left_out for system in systems}) < 2:
        return ""
    each = ", ".join(f"{system.left_out} by {system.name}" for system in systems)
    return (
        "Not all ranked the same candidates: with exclude_seen the last max_length items of a history are left out "
        f"({each}), so that of a longer history a larger max_length leaves fewer to rank."
    )


def _collect(paths: Sequence[Path]) -> list[_System]:
    """Read configurations and rankings; runs of one system stand together, in the order given."""
    systems: dict[str, _System] = {}
    seen: dict[Path, Path] = {}
    runs: dict[tuple[str, int, str | None], Path] = {}
    hashes: dict[str | None, Path] = {}
    excluded: dict[bool, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(f"{path} is given twice; a run counts once")
        seen[path.resolve()] = path
        folder = RunFolder(path)
        config = folder.require_finished()
        hashes.setdefault((config.provenance or {}).get("data_hash"), path)
        if len(hashes) > 1:
            one, other = hashes.values()
            raise RunError(f"{one} and {other} are runs on different data; compare runs on the same")
        excluded.setdefault(config.exclude_seen, path)
        if len(excluded) > 1:
            raise RunError(
                f"{excluded[True]} left the items of the history out of its ranking and {excluded[False]} did not; "
                "compare runs with the same --exclude_seen"
            )
        key = repr(sorted(_decisive(config).items()))
        system = systems.setdefault(key, _System(config))
        # A second phase's draws are those of its seed and of the weights that it began with.
        same = runs.setdefault((key, config.seed, (config.provenance or {}).get("init_hash")), path)
        if same is not path:
            raise ConfigError(
                f"{same} and {path} are one system with one seed ({config.seed}): they differ in nothing that decides "
                "a result, so they do not count as two; give one of them"
            )
        system.folders.append(path)
        system.rankings.append(load_ranking(folder.ranks("test")))
    return list(systems.values())


def _decisive(config: Config) -> dict[str, Any]:
    """Return what makes a system: all options that decide a result, but for the seed, and what is known of items."""
    left_out = NOT_THE_SYSTEM | options_of_other_methods(config)
    values = {name: value for name, value in config.decisive().items() if name not in left_out}
    # A file of features or a folder of text vectors may have been written anew between two runs that name it.
    item_data = (config.provenance or {}).get("item_data_hash")
    values |= {} if item_data is None else {"item_data": item_data[:12]}
    if config.init is None:
        return values
    first = _first_phase(config)
    if first is None:
        return {**values, "init": "not found"}
    return {**values, "init": "found", **{f"init {name}": value for name, value in _decisive(first).items()}}


def _first_phase(config: Config) -> Config | None:
    """Return the configuration of the run that a second phase began with; None where that is not there any more."""
    folder = RunFolder(Path(config.init or ""))
    if not (folder.config.exists() and folder.weights.exists()):
        return None
    same = sha256_of(folder.weights) == (config.provenance or {}).get("init_hash")
    return Config.load(folder.config) if same else None


def _names(configs: Sequence[Config]) -> list[str]:
    """Name each system, with what tells it from the others of its backbone and method."""
    names = []
    for config in configs:
        own = _decisive(config)
        kin = [_decisive(other) for other in configs if other.title == config.title]
        # What one of them does not have, the file or the run that it is of tells apart.
        telling = [key for key in own if any(other.get(key, own[key]) != own[key] for other in kin)]
        names.append(", ".join([config.title, *(f"{key} {_shown(own[key])}" for key in telling)]))
    return names


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
