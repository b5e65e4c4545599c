"""The parts of a search, a trial or a final run each, done here or by processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from plr.children import Children, begun, last_words
from plr.errors import EvaluationError, NonFiniteLossError, RunError, UserError
from plr.signals import raise_again, status_of
from plr.tune.request import Request
from plr.tune.search import Search
from plr.tune.systems import System, system_of

__all__ = ["Part", "do_parts", "found_by"]


@dataclass(frozen=True)
class Part:
    """A system's trial of that number, or the run of its chosen settings with that seed."""

    system: System
    what: Literal["trial", "seed"]
    number: int

    @property
    def name(self) -> str:
        """For lines of progress."""
        return f"{self.system.name} {self.what} {self.number}"

    @property
    def before(self) -> Part | None:
        """The part that has to be over first: a trial learns from the one before it."""
        return Part(self.system, "trial", self.number - 1) if self.what == "trial" and self.number else None


def do_parts(search: Search, parts: Sequence[Part], over: Callable[[Part], None]) -> None:
    """Do the parts, as many at a time as the request says; `over` is called after each.

    Raises:
        UserError: what makes one impossible.
    """
    if search.request.processes == 1:
        for part in parts:
            raise_again()
            _do(search, part)
            over(part)
        return
    logs = search.out / "logs"
    logs.mkdir(exist_ok=True)
    request = json.dumps(asdict(search.request))

    def start(part: Part) -> subprocess.Popen[bytes]:
        command = ["plr.tune.parts", request, part.system.name, part.what, str(part.number)]
        return begun(command, logs / f"{part.name}.log")

    def ended(part: Part, status: int | None) -> None:
        log = logs / f"{part.name}.log"
        said = last_words(log)
        if status:
            one_of_ours = status >= UserError.status
            raise RunError(said[-1000:] if one_of_ours else f"{part.name} ended with status {status}: {said[-1000:]}")
        if not said:
            log.unlink()
        over(part)

    Children(search.request.processes, start, ended, after=lambda part: part.before).run(parts)
    with suppress(OSError):
        logs.rmdir()  # where none has said anything


def found_by(search: Search, part: Part) -> str:
    """Say what a part that is over has found."""
    if part.what == "trial":
        return str(search.trials(part.system)[part.number])
    trial = search.chosen(part.system)
    assert trial is not None  # it has a final run
    metrics = search.final(part.system, trial, part.number).read_metrics()
    return f"test NDCG@10 {metrics['test']['ndcg@10']:.4f}"


def _do(search: Search, part: Part) -> None:
    if part.what == "trial":
        search.run_trial(part.system)
        return
    trial = search.chosen(part.system)
    assert trial is not None  # all trials are over, and those of which none is chosen have ended the search
    try:
        search.train_final(part.system, trial, part.number)
    except (NonFiniteLossError, EvaluationError) as error:
        raise RunError(
            f"{part.system.name}, seed {part.number} of the chosen trial {trial.number}: {error}; --trials with a "
            "larger number goes on searching"
        ) from error


def _main(request: str, system: str, what: Literal["trial", "seed"], number: str) -> int:
    """Do one part of a search that another process has opened and locked; an error is a message on stderr."""
    given: dict[str, Any] = json.loads(request)
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    try:
        search = Search(Request(**given))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _ = search.dataset  # what is to be said of the data the other process has said
        with search.storage_named():
            search.open()
            _do(search, Part(system_of(system), what, int(number)))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return error.status if isinstance(error, UserError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(status_of(lambda: _main(*sys.argv[1:])))  # type: ignore[arg-type]
