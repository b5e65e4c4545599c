"""From a request to the report: plan, train, measure, write."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from plr.durations import duration
from plr.errors import ConfigError, RunError
from plr.inputs import resolve
from plr.lock import locked
from plr.reproduce.comparison import check_comparable
from plr.reproduce.report import keep_section, kept_sections, refuse_foreign_report, write_report
from plr.reproduce.request import Request
from plr.reproduce.results import Section
from plr.reproduce.runner import estimates, train_runs, unfinished
from plr.reproduce.study import Run, Study, System
from plr.signals import raise_again
from plr.version import __version__

__all__ = ["reproduce"]

Say = Callable[[str], None]


def reproduce(request: Request, say: Say = print, *, plan_only: bool = False) -> Path | None:
    """Train what is missing, measure, and write the report.

    Finished runs are not trained again, interrupted ones are resumed, and what was measured on a run is kept: the same
    request, repeated, ends with the same files.

    Args:
        request: what, on which data, where to.
        say: called with each line of progress.
        plan_only: say what would be trained and how long it would take, and train nothing.

    Returns:
        The report, or None with `plan_only`.

    Raises:
        UserError: what makes the request impossible.
    """
    study = Study(request)
    modules = {name: import_module(f"plr.reproduce.{name}") for name in request.names}
    needs_data = [name for name in modules if name != "table4"]
    if needs_data and not study.has_data:
        raise ConfigError(f"--data is missing: {', '.join(needs_data)} is measured on data; table4 alone needs none")
    if study.has_data:
        resolve(request.data)  # before a folder is made
    refuse_foreign_report(study.out)
    if threads := study.config_of(System("sasrec", "base")).threads:
        torch.set_num_threads(threads)  # for what is measured too: another number sums in another order
    try:
        study.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--out {study.out}: cannot create the folder: a file of that name exists") from error
    with locked(study.out):
        runs = _needed(study, modules)
        missing = unfinished(study, runs)
        expected = _announce(study, runs, missing, say)
        if plan_only:
            for run in missing:
                say(f"  {run.name}: {duration(expected[run])}")
            return None
        train_runs(study, missing, expected, say)
        for name, module in modules.items():
            raise_again()
            say(f"measuring {name}")
            section: Section = module.section(study)
            lost = [run for run in module.needs(study) if run in study.failed]
            section.parts += [f"Without {run.name}: {study.failed[run]}." for run in lost]
            keep_section(study.out, study.identity, section)
        sections, others = kept_sections(study.out, study.identity)
        for name, reason in others.items():
            say(f"not in the report: {name}, {reason}")
        return write_report(study.out, "Parallel Latent Reasoning, reproduced", _facts(study), sections)


def _needed(study: Study, modules: dict[str, ModuleType]) -> list[Run]:
    """Return the runs that the tables and figures need, first seeds first, and first phases before second ones."""
    needed = (run for module in modules.values() for run in module.needs(study))
    runs = dict.fromkeys(each for run in needed for each in (run.first_phase, run) if each is not None)
    return sorted(runs, key=lambda run: run.seed)  # stable: as the tables name them within a seed


def _announce(study: Study, runs: list[Run], missing: list[Run], say: Say) -> dict[Run, float]:
    """Say what will be trained and how long it will take at most."""
    if not runs:
        say("no run is needed")
        return {}
    dataset = study.dataset
    check_comparable(study.data, dataset)
    say(
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {len(dataset.items):,} interactions, split by "
        f"{dataset.split}; preset {study.request.preset}, seeds {', '.join(map(str, study.seeds))}"
    )
    if not missing:
        say(f"all {len(runs)} runs are finished")
        return {}
    expected = estimates(study, missing)
    seconds = sum(expected.values()) / study.request.processes
    say(f"{len(missing)} of {len(runs)} runs to train: about {duration(seconds)}, less where they stop early")
    return expected


def _facts(study: Study) -> list[str]:
    """Return what all figures of the report are of."""
    request = study.request
    facts = [f"plr {__version__}, torch {torch.__version__}; preset {request.preset}: {study.preset.description}"]
    if study.has_data:
        dataset = study.dataset
        facts.append(
            f"data: {Path(request.data).name}, {dataset.num_users:,} users, {dataset.num_items:,} items, "
            f"{len(dataset.items):,} interactions; {dataset.split} split; {_candidates(study)} are ranked, rank = 1 + "
            "better + others with the same score / 2"
        )
        if Path(study.data) != Path(request.data):
            facts.append("the data are a sample of the file's users, drawn at random")
    facts.append(f"seeds: {', '.join(map(str, study.seeds))}; mean ± standard deviation over them")
    if request.settings:
        facts.append(f"set for this report: {', '.join(request.settings)}")
    if study.has_data and not request.backbones and "unisrec" not in study.backbones:
        facts.append(
            "UniSRec is left out: it reads text vectors of the items; make them by plr embed-text and add "
            "--set unisrec:text_vectors=FOLDER"
        )
    facts.append("runs lie in the folder runs beside this report; plr evaluate, compare and recommend take them")
    return facts


def _candidates(study: Study) -> str:
    """Return what is ranked for a test row: with exclude_seen and a max_length of their own, not the same by all."""
    bare = System("sasrec", "base")
    if not study.config_of(bare).exclude_seen:
        return "all items"
    lengths = sorted({study.config_of(system).max_length for system in (bare, *study.table_2())})
    unequal = ", fewer by systems with a larger max_length" if len(lengths) > 1 else ""
    each = " or ".join(map(str, lengths))
    return f"all items but those that the history's last {each} interactions are with (exclude_seen{unequal})"
