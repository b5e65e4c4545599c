"""From a request to the chosen settings: trials in turns, the best of each system, their runs with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from plr.durations import duration
from plr.errors import RunError
from plr.inputs import resolve
from plr.lock import locked
from plr.signals import raise_again
from plr.tune.request import Request

if TYPE_CHECKING:
    from plr.tune.parts import Part
    from plr.tune.search import Search
    from plr.tune.systems import System

__all__ = ["tune"]

Say = Callable[[str], None]


def tune(request: Request, say: Say = print, *, plan_only: bool = False) -> Path | None:
    """Search settings of every system by validation, then train and test the chosen ones with several seeds.

    Finished trials and runs are kept, interrupted ones go on: the same request, repeated, ends with the same settings.
    With more trials, seeds or systems it goes on from what is there.

    Args:
        request: what, on which data, where to.
        say: called with each line of progress.
        plan_only: say what would be trained and how long it would take, and train nothing.

    Returns:
        The report, or None with `plan_only`.

    Raises:
        RunError: Optuna is missing, or the folder holds another search.
        UserError: what else makes the request impossible.
    """
    if find_spec("optuna") is None:
        raise RunError("plr tune needs Optuna: pip install -e '.[tune]'")
    from plr.tune.search import Search

    resolve(request.data)
    search = Search(request)
    _ = search.dataset  # read before a folder is made
    try:
        search.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--out {search.out}: cannot create the folder: a file of that name exists") from error
    with locked(search.out), search.storage_named():
        search.open()
        return _tuned(search, say, plan_only)


def _tuned(search: Search, say: Say, plan_only: bool) -> Path | None:
    from plr.reproduce.comparison import check_comparable
    from plr.reproduce.estimate import seconds_of_run
    from plr.reproduce.runner import START, Progress
    from plr.runs import RunFolder
    from plr.tune.parts import Part, do_parts, found_by
    from plr.tune.report import write_best, write_report

    request, dataset = search.request, search.dataset
    if request.seeds and len(request.tuned) > 1:
        check_comparable(request.data, dataset)
    say(
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {len(dataset.items):,} interactions, split by "
        f"{dataset.split}"
    )
    done = {system: len(search.trials(system)) for system in request.tuned}
    # Trial by trial: an interrupted search has as many of each system.
    missing = [
        (system, number) for number in range(request.trials) for system in request.tuned if number >= done[system]
    ]
    finals = _finals_left(search, missing)
    seconds = {}
    for system in request.tuned if missing or finals else ():
        raise_again()
        config = search.defaults(system)
        seconds[system] = seconds_of_run(config, dataset, RunFolder(Path(config.out)))
        seconds[system] += START if request.processes > 1 else 0.0
    work = [system for system, _ in missing] + [system for system, _ in finals]
    expected = sum(seconds[system] for system in work)
    say(
        f"{len(missing)} of {request.trials * len(request.tuned)} trials and {len(finals)} of "
        f"{request.seeds * len(request.tuned)} final runs to train: about "
        f"{duration(expected / request.processes)}, less where they stop early or are ended"
    )
    if plan_only:
        for system, each in seconds.items():
            say(f"  {system.name}: {work.count(system)} × {duration(each)}")
        return None
    progress = Progress(len(work), expected, say)

    def over(part: Part) -> None:
        progress.over(f"{part.name}: {found_by(search, part)}", seconds[part.system])

    do_parts(search, [Part(system, "trial", number) for system, number in missing], over)
    best = {system: trial for system in request.tuned if (trial := search.chosen(system)) is not None}
    for system, trial in best.items():
        say(f"best of {system.name}: trial {trial.number}, {write_best(search, system, trial)}")
    if without := [system for system in request.tuned if system not in best]:
        raise RunError(_why_none(search, without[0], write_report(search, best, ())))
    # Seed by seed: an interrupted test is complete for the first ones.
    left = [
        Part(system, "seed", seed)
        for seed in range(request.seeds)
        for system, trial in best.items()
        if not search.final_is_finished(system, trial, seed)
    ]
    open_seeds = [part.number for part in left]
    report = write_report(search, best, range(min(open_seeds, default=request.seeds)))

    def final_over(part: Part) -> None:
        nonlocal report
        over(part)
        open_seeds.remove(part.number)
        if part.number not in open_seeds:
            report = write_report(search, best, range(min(open_seeds, default=request.seeds)))

    do_parts(search, left, final_over)
    return report


def _finals_left(search: Search, missing: list[tuple[System, int]]) -> list[tuple[System, int]]:
    """Return the final runs to be trained, as far as it is known: more trials may choose other settings."""
    open_systems = {system for system, _ in missing}
    left = []
    for seed in range(search.request.seeds):
        for system in search.request.tuned:
            trial = None if system in open_systems else search.chosen(system)
            if trial is None or not search.final_is_finished(system, trial, seed):
                left.append((system, seed))
    return left


def _why_none(search: Search, system: System, report: Path) -> str:
    """Say that no trial of a system came to its end, why, and what to do."""
    last = search.trials(system)[-1]
    return (
        f"none of the {search.request.trials} trials of {system.name} came to its end, the last: {last}; all are in "
        f"{report}; --trials with a larger number goes on searching"
    )
