"""What a search leaves: report.md, trials.csv, trials.json, and a configuration file of each system's best settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from plr.config import Config, without_derived
from plr.files import atomic_path
from plr.formats import rendered
from plr.reproduce.results import Cell, Estimate, Table
from plr.serving.compare import BY_USER, ComparedSystem, compare_runs, other_candidates
from plr.tune.request import PRUNERS
from plr.tune.search import Search, Trial, plainly
from plr.tune.systems import System
from plr.version import __version__

__all__ = ["METRICS", "write_best", "write_report"]

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
_PLACES = ("data", "out", "seed", "progress", "provenance")


def write_best(search: Search, system: System, trial: Trial) -> Path:
    """Write the best settings of a system, as `plr train --config` takes them with --out."""
    path, config = search.out / "best" / f"{system.name}.yaml", search.config_of(system, trial)
    chosen = without_derived({**config.plain(), "provenance": {}})
    values: dict[str, Any] = {"data": config.data, "backbone": config.backbone, "method": config.method}
    for each in fields(Config):
        known = each.name in chosen and each.name not in (*_PLACES, *values)
        usual = list(each.default) if isinstance(each.default, tuple) else each.default
        if known and (each.name in trial.settings or chosen[each.name] != usual):
            values[each.name] = chosen[each.name]
    head = (
        f"# {system.name}: trial {trial.number} of {len(search.trials(system))}, validation NDCG@10 "
        f"{trial.validation:.4f}, best epoch {trial.best_epoch}; plr {__version__}\n"
        f"# plr train --config {shlex.quote(str(path))} --out RUN\n"
    )
    _write(path, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


def write_report(search: Search, best: Mapping[System, Trial], seeds: Sequence[int]) -> Path:
    """Write the tables of the trials, and of the final runs with these seeds, which are finished.

    Returns:
        The Markdown file.
    """
    columns = list(dict.fromkeys(name for searched in search.searched.values() for name in searched))
    _write(search.out / "trials.csv", _trials(search, search.request.tuned, columns).csv())
    _write(search.out / "trials.json", json.dumps(_record(search, best, seeds), indent=1))
    path = search.out / "report.md"
    _write(path, _markdown(search, best, seeds))
    return path


def _markdown(search: Search, best: Mapping[System, Trial], seeds: Sequence[int]) -> str:
    request, dataset = search.request, search.dataset
    lines = [
        "# Search of settings",
        "",
        f"- plr {__version__}; data: {Path(request.data).name}, {dataset.num_users:,} users, {dataset.num_items:,} "
        f"items, {len(dataset.items):,} interactions; {dataset.split} split",
        f"- {request.trials} trials of each system, the first with its default settings, the others drawn with seed "
        f"{request.seed}, all trained with seed 0, chosen by NDCG@10 on the validation rows alone; pruner "
        f"{request.pruner}: {PRUNERS[request.pruner]}",
    ]
    if seeds:
        lines.append(f"- tested: the chosen settings alone, with seeds {', '.join(map(str, seeds))}")
    common = _common(search)
    if common:
        lines.append(f"- set for all: {_assigned(common)}")
    for system in request.tuned:
        own = {name: value for name, value in search.fixed[system].items() if name not in common}
        if own:
            lines.append(f"- set for {system.name}, and not equally for all: {_assigned(own)}")
    searched = [each for each in request.tuned if "max_length" in search.searched[each]]
    unequal = [each.name for each in searched if search.defaults(each).exclude_seen]
    if unequal:
        lines.append(
            f"- max_length was searched with exclude_seen ({', '.join(unequal)}): the last max_length items of a "
            "history are left out of the ranking, so that of a longer history a larger one leaves fewer candidates, "
            "which raises its validation by itself"
        )
    lines += ["", "## Chosen", "", _rendered(_chosen(search, best, seeds)), ""]
    unsettled = [system.name for system, trial in best.items() if trial.number >= -(-request.trials // 2)]
    if unsettled:
        lines += [f"Best trial in the search's second half, so that more may find better: {', '.join(unsettled)}.", ""]
    for system in request.tuned:
        table = _trials(search, [system], list(search.searched[system]))
        lines += [f"## Trials of {system.name}", "", _rendered(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _common(search: Search) -> dict[str, Any]:
    """Return what is set, by --set or by the space, to the same for all systems."""
    first, *others = (search.fixed[system] for system in search.request.tuned)
    return {name: value for name, value in first.items() if all((name, value) in each.items() for each in others)}


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _chosen(search: Search, best: Mapping[System, Trial], seeds: Sequence[int]) -> Table:
    header = ["system", "trial", "validation NDCG@10: defaults", "best", "settings"]
    compared = _compared(search, best, seeds)
    if seeds:
        header += [f"test {name}" for name in METRICS]
    if compared:
        header += [f"NDCG@10 − {search.request.tuned[0].name}", "95 % interval", "p (Holm)"]
    rows: list[list[Cell]] = []
    for system, trial in best.items():
        row: list[Cell] = [system.name, trial.number, search.trials(system)[0].validation, trial.validation]
        row.append(plainly(trial.settings))
        if seeds:
            runs = [search.final(system, trial, seed) for seed in seeds]
            row += [Estimate.of([run.test_metric(name) for run in runs]) for name in METRICS]
        if compared:
            row += _difference(compared.get(system))
        rows.append(row)
    note = "Test metrics: mean ± standard deviation over seeds. " if seeds else ""
    if compared:
        note += f"Of differences: {BY_USER}; interval over users and seeds, p of paired t-tests over users. "
        note += other_candidates(list(compared.values()))
    return Table("chosen", "", header, rows, note.rstrip())


def _compared(search: Search, best: Mapping[System, Trial], seeds: Sequence[int]) -> dict[System, ComparedSystem]:
    """Compare each system with the first."""
    if not seeds or len(best) < 2:
        return {}
    folders = {system: [search.final(system, trial, seed).path for seed in seeds] for system, trial in best.items()}
    by_folder = {
        each.folders[0]: each for each in compare_runs([path for paths in folders.values() for path in paths])
    }
    return {system: by_folder[paths[0]] for system, paths in folders.items()}


def _difference(compared: ComparedSystem | None) -> list[Cell]:
    found = None if compared is None else compared.comparison
    if compared is None or found is None:
        return [None, None, None]
    return [f"{found.difference:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}", f"{compared.p_value:.2g}"]


def _trials(search: Search, systems: Sequence[System], columns: list[str]) -> Table:
    rows: list[list[Cell]] = []
    for system in systems:
        for trial in search.trials(system):
            place = [trial.best_epoch, len(trial.by_epoch)] if trial.by_epoch else [None, 0]
            settings = [_cell(trial.settings.get(name)) for name in columns]
            rows.append([system.name, trial.number, trial.state, trial.validation, *place, trial.seconds, *settings])
    header = ["system", "trial", "state", "validation NDCG@10", "best epoch", "epochs", "seconds", *columns]
    return Table("trials", "", header, rows)


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    return value


def _record(search: Search, best: Mapping[System, Trial], seeds: Sequence[int]) -> dict[str, Any]:
    systems = {}
    for system in search.request.tuned:
        trial = best.get(system)
        runs = [] if trial is None else [(seed, search.final(system, trial, seed)) for seed in seeds]
        systems[system.name] = {
            "space": {name: spec.plain() for name, spec in search.searched[system].items()},
            "fixed": search.fixed[system],
            "trials": [asdict(each) for each in search.trials(system)],
            "chosen": None if trial is None else trial.number,
            "final": [
                {"seed": seed, "run": str(folder.path.relative_to(search.out)), **_measured(folder.read_metrics())}
                for seed, folder in runs
            ],
        }
    asked = {"seed": search.request.seed, "pruner": search.request.pruner}
    return {"plr": __version__, "data_hash": search.dataset.content_hash, **asked, "systems": systems}


def _measured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("best_epoch", "valid", "test")}


def _rendered(table: Table) -> str:
    return rendered(table.text(), table.note, "markdown").rstrip()


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")
