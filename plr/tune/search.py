"""Trials of the systems: settings drawn by Optuna, kept in its storage, trained until validation says enough."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as lightning
import optuna
import torch
from lightning.pytorch.callbacks import Callback
from optuna.trial import FrozenTrial, TrialState

from plr.config import Config
from plr.data import SequenceDataset
from plr.errors import ConfigError, EvaluationError, NonFiniteLossError, RunError, out_of_memory
from plr.inputs import ItemDataHashes, load_dataset
from plr.models.registry import options_of_other_methods
from plr.options import UniSRecOptions
from plr.runs import RunFolder
from plr.training import train
from plr.training.callbacks import MONITOR
from plr.training.opened import check_rows
from plr.training.trainer import train_without_test
from plr.tune.request import Request
from plr.tune.space import DEFAULT_SPACE, Choices, Space, Spec
from plr.tune.systems import System

__all__ = ["Search", "Trial", "plainly"]

_STARTUP = 5  # trials that are drawn at random, the default settings among them
_WARM_UP = 2  # epochs that no trial is ended in
_LED = 10  # settings of a trial that the sampler proposes; where all are refused, others are drawn at random
_MOST_REFUSED = 100
_OTHER_DATA = {"data": "the data are other ones", "item_data": "the items' features or text vectors are other ones"}
_PATIENCE = 120.0  # seconds that the storage of trials is waited for
_DRAWS = 500  # of settings that may show that an option has an effect, or that a value can be taken
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        number: from 0; 0 has the default settings.
        settings: the searched options.
        state: "complete", "pruned" or "failed", where its loss became NaN or infinite, or it needs too much memory.
        by_epoch: NDCG@10 on the validation rows, epoch by epoch.
        seconds: of training and validating, without what an interrupted command had spent on it.
        failure: what the error said, of a failed one.
    """

    number: int
    settings: dict[str, Any]
    state: str
    by_epoch: list[float]
    seconds: float
    failure: str = ""

    @property
    def validation(self) -> float | None:
        """The best epoch's."""
        return max(self.by_epoch, default=None)

    @property
    def best_epoch(self) -> int:
        """Its number, from 1."""
        return self.by_epoch.index(max(self.by_epoch)) + 1

    def __str__(self) -> str:
        if self.validation is None:
            return f"failed in its first epoch: {self.failure}; {plainly(self.settings)}"
        ended = {"pruned": ", ended early", "failed": f", then {self.failure}"}.get(self.state, "")
        place = f"best epoch {self.best_epoch} of {len(self.by_epoch)}{ended}"
        return f"validation NDCG@10 {self.validation:.4f}, {place}; {plainly(self.settings)}"


class Search:
    """The trials of all systems, and the runs of the settings that they chose.

    Args:
        request: what was asked for.

    Raises:
        ConfigError, DataError: the request cannot be met: names what of it.
    """

    def __init__(self, request: Request):
        self.request = request
        self.out = Path(request.out)
        path = DEFAULT_SPACE if request.space is None else Path(request.space)
        if not path.is_file():
            raise ConfigError(f"--space {path}: no such file")
        space = Space(path)
        self.searched: dict[System, dict[str, Spec]] = {}
        self.fixed: dict[System, dict[str, Any]] = {}  # by --set and by the space
        entries = space.of({system: self._foreign(system) for system in request.tuned})
        for system, (searched, fixed) in entries.items():
            given = request.set_for(system)
            self.fixed[system] = fixed | given
            self.searched[system] = {name: spec for name, spec in searched.items() if name not in given}
            if not self.searched[system]:
                raise ConfigError(f"{space.path}: nothing is searched for {system.name}")
            self._check(space, system)

    @cached_property
    def dataset(self) -> SequenceDataset:
        """The data of all runs."""
        return load_dataset(self.defaults(self.request.tuned[0]))

    @cached_property
    def _item_data(self) -> ItemDataHashes:
        return ItemDataHashes(self.dataset.item_ids)

    def defaults(self, system: System) -> Config:
        """Return the configuration of a system's first trial."""
        return self._config(system, {}, self._trial_folder(system, 0))

    def trials(self, system: System) -> list[Trial]:
        """Return a system's finished trials, in their order; no more than are asked for, as for all systems."""
        asked_for = self._counted(system)[: self.request.trials]
        return [_finished(number, each) for number, each in enumerate(asked_for)]

    def chosen(self, system: System) -> Trial | None:
        """Return the trial with the best validation, the first of equals; None where none came to its end."""
        complete = [trial for trial in self.trials(system) if trial.state == "complete"]
        return max(complete, key=lambda trial: trial.validation or 0.0, default=None)

    def config_of(self, system: System, trial: Trial, seed: int = 0, out: Path | None = None) -> Config:
        """Return the configuration of a trial's settings."""
        values = trial.settings if trial.number else {}
        return self._config(system, values, self._trial_folder(system, trial.number) if out is None else out, seed)

    def final(self, system: System, trial: Trial, seed: int) -> RunFolder:
        """Return the run of a trial's settings with a seed, finished or not."""
        return RunFolder(self.out / "runs" / f"{system.name}-trial{trial.number}-seed{seed}")

    def final_is_finished(self, system: System, trial: Trial, seed: int) -> bool:
        """Whether that run is finished.

        Raises:
            RunError: its folder holds another one, say of a search whose storage was deleted.
        """
        folder, config = self.final(system, trial, seed), self._final_config(system, trial, seed)
        return folder.finished_as(config, self.dataset.content_hash, self._item_data.of(config, folder.item_data))

    def train_final(self, system: System, trial: Trial, seed: int) -> None:
        """Train, validate and test that run."""
        train(self._with_threads(self._final_config(system, trial, seed)), self.dataset)

    def _final_config(self, system: System, trial: Trial, seed: int) -> Config:
        return self.config_of(system, trial, seed, self.final(system, trial, seed).path)

    def open(self) -> None:
        """Open the storage, and remove the folders of trials that had ended when a command was killed.

        Raises:
            RunError: it holds another search.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for system in self.request.tuned:
            study, now = self._study(system), self._identity(system)
            before = study.user_attrs.get("search")
            if before is None or not study.get_trials(deepcopy=False):  # of a --plan, say: nothing was searched yet
                study.set_user_attr("search", now)
            # An earlier plr did not keep what was known of items.
            elif changed := _differences({"item_data": now.get("item_data"), **before}, now):
                raise RunError(
                    f"{self.out}: holds another search of {system.name} ({'; '.join(changed)}); choose another --out, "
                    "or delete the folder"
                )
            for number in range(len(self._counted(system))):
                shutil.rmtree(self._trial_folder(system, number), ignore_errors=True)

    @contextmanager
    def storage_named(self) -> Iterator[None]:
        """Raise what Optuna raises where its storage cannot be read or written, as a RunError that says so."""
        from sqlalchemy.exc import SQLAlchemyError  # of Optuna's

        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise RunError(
                f"{self._storage_path}: the storage of trials cannot be read or written ({_reason(error)}); repeat the "
                "command to go on: what is finished stays"
            ) from error

    def run_trial(self, system: System) -> Trial:
        """Make a system's next trial, or go on with the one that was interrupted.

        No test row is looked at, and of the run nothing is left but what the storage has.
        """
        number = len(self._counted(system))
        trial, config = self._asked(system, number)
        report, begun = _Report(trial), time.perf_counter()
        kept: dict[str, Any] = {"settings": self._settings(system, config), "state": "complete"}
        try:
            train_without_test(self._with_threads(config), self.dataset, callbacks=[report])
        except (NonFiniteLossError, EvaluationError) as error:
            kept |= {"state": "failed", "failure": str(error)}
        except Exception as error:
            if (reason := out_of_memory(error)) is None:
                raise
            self._refuse_to_share_memory(reason)
            kept |= {"state": "failed", "failure": f"too little memory ({reason})"}
        else:
            if report.pruned:
                kept["state"] = "pruned"
        trial.set_user_attr("plr", {**kept, "by_epoch": report.values, "seconds": time.perf_counter() - begun})
        if kept["state"] == "complete":
            self._study(system).tell(trial, max(report.values))
        else:
            self._study(system).tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(self._trial_folder(system, number), ignore_errors=True)
        return self.trials(system)[-1]

    def _refuse_to_share_memory(self, reason: str) -> None:
        """Refuse to count a trial as failed for want of the memory that others had beside it: alone it may fit."""
        if self.request.processes > 1:
            raise RunError(
                f"too little memory for {self.request.processes} processes at a time ({reason}); repeat the command "
                "with fewer --processes: what is finished stays; with one, a trial that does not fit counts as failed"
            )

    def _asked(self, system: System, number: int) -> tuple[optuna.Trial, Config]:
        """Return the trial of that number with its configuration.

        Its random numbers depend on the seed, the system and the number: a repeated command draws what the killed one
        had drawn, and one that was begun has its parameters again.
        """
        study, folder = self._study(system), RunFolder(self._trial_folder(system, number))
        fixed = {} if number else self._inside(system)
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if folder.config.exists():
                # Of one that was killed while it was drawn again params are but a part.
                fixed = left.system_attrs.get("fixed_params", left.params)
            study.tell(left.number, state=TrialState.FAIL)  # counts for nothing; the same comes again
        refused = 0
        while True:
            # Refused settings teach the sampler nothing: it would propose them, as the least known ones, for ever.
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=_STARTUP if refused < _LED else sys.maxsize,
                multivariate=False,
                seed=_seed(self.request.seed, system, number, refused),
            )
            if fixed and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                study.enqueue_trial(fixed)
            trial = study.ask()
            names = [name for name in self.searched[system] if number or name in fixed]
            values = {name: _drawn(trial, name, self.searched[system][name]) for name in names}
            try:
                config = self._config(system, values if number else {}, folder.path)
                check_rows(config, self.dataset)
                return trial, config
            except (ConfigError, RunError) as error:
                if not number:  # the default settings: no other draw would change them
                    raise
                trial.set_user_attr("refused", str(error))
                study.tell(trial, state=TrialState.FAIL)
                refused, fixed = refused + 1, {}
                if refused == _MOST_REFUSED:
                    raise ConfigError(
                        f"{refused} settings of {system.name} drawn from the search space were refused, the last with: "
                        f"{error}"
                    ) from error

    def _inside(self, system: System) -> dict[str, Any]:
        """Return those of the default settings that the search space holds, from which the sampler learns."""
        config = self.defaults(system)
        values = {name: getattr(config, name) for name in self.searched[system]}
        return {name: value for name, value in values.items() if self.searched[system][name].holds(value)}

    def _settings(self, system: System, config: Config) -> dict[str, Any]:
        return {name: getattr(config, name) for name in self.searched[system]}

    def _config(self, system: System, values: Mapping[str, Any], out: Path, seed: int = 0) -> Config:
        """Return the configuration of drawn values; one without an effect beside the others has its default."""
        own: dict[str, Any] = {"data": self.request.data, "out": str(out), "seed": seed, "progress": False}
        given = {**system.settings, **self.fixed[system]}
        try:
            Config(**own, **given)  # what was asked for has to have an effect
            return Config.effective(**own, **{**given, **values})
        except ConfigError as error:
            raise ConfigError(f"{system.name}: {error}") from error

    def _with_threads(self, config: Config) -> Config:
        """Return the configuration: of several processes each has its share of the threads."""
        if self.request.processes == 1:
            return config
        return replace(config, threads=max(1, torch.get_num_threads() // self.request.processes))

    def _check(self, space: Space, system: System) -> None:
        """Refuse a space of which some value cannot be taken at all."""
        try:
            self.defaults(system)
        except ConfigError as error:
            if self._accepted_without_space(system):
                raise ConfigError(f"{space.path}: {error}") from error
            raise
        for name, spec in self.searched[system].items():
            for value in spec.edges():
                try:
                    self._config(system, {name: value}, self.out)
                except ConfigError as error:
                    if not self._fits_some_draw(system, name, value):
                        raise ConfigError(f"{space.path}: {error}") from error
        self._check_effects(space, system)

    def _accepted_without_space(self, system: System) -> bool:
        """Return whether what --set says could be trained, so that what is wrong stands in the space."""
        given = {**self._needed(system), **system.settings, **self.request.set_for(system)}
        try:
            Config(data="data", out="out", **given)
        except ConfigError:
            return False
        return True

    def _fits_some_draw(self, system: System, name: str, value: Any) -> bool:
        """Return whether a value that is refused beside the defaults is accepted beside what else may be drawn."""
        others = {other: spec for other, spec in self.searched[system].items() if other != name}
        random = Random(0)
        for _ in range(_DRAWS if others else 0):
            with suppress(ConfigError):
                drawn = {other: spec.drawn(random) for other, spec in others.items()}
                self._config(system, {**drawn, name: value}, self.out)
                return True
        return False

    def _check_effects(self, space: Space, system: System) -> None:
        """Refuse a searched option that keeps its default whatever is drawn: each of its trials would be the same."""
        specs = self.searched[system]
        had = {name: set[str]() for name, spec in specs.items() if len(spec.edges()) > 1}  # what the trials would have
        random = Random(0)
        for _ in range(_DRAWS):
            with suppress(ConfigError):  # these do not fit together, and are drawn again in the search
                config = self._config(system, {name: spec.drawn(random) for name, spec in specs.items()}, self.out)
                for name, values in had.items():
                    values.add(repr(getattr(config, name)))
            if all(len(values) > 1 for values in had.values()):
                return
        for name, values in had.items():
            if len(values) == 1:
                raise ConfigError(f"{space.path}: {system.name}: {self._why_without_effect(system, name)}")

    def _why_without_effect(self, system: System, name: str) -> str:
        for value in self.searched[system][name].edges():
            try:
                Config(data="data", out="out", **{**system.settings, **self.fixed[system], name: value})
            except ConfigError as error:
                return f"{error}; nothing else that is searched makes a difference"
        return f"{name} is the same whichever of its values is drawn"

    def _foreign(self, system: System) -> set[str]:
        """Return the options that decide nothing in a system."""
        config = Config(**{**system.settings, **self._needed(system)})
        text = set() if system.backbone == "unisrec" else {each.name for each in fields(UniSRecOptions)}
        return options_of_other_methods(config) | text

    def _needed(self, system: System) -> dict[str, Any]:
        return {"text_vectors": "given"} if system.backbone == "unisrec" else {}

    @property
    def _storage_path(self) -> Path:
        return self.out / "trials.db"

    def _study(self, system: System) -> optuna.Study:
        return self._studies[system]

    @cached_property
    def _studies(self) -> dict[System, optuna.Study]:
        from sqlalchemy import URL  # of Optuna's

        path = self._storage_path
        try:
            # Several processes write: SQLite lets one after the other, and a disk may be slow.
            storage = optuna.storages.RDBStorage(
                URL.create("sqlite", database=str(path)).render_as_string(),
                engine_kwargs={"connect_args": {"timeout": _PATIENCE}},
            )
            return {
                system: optuna.create_study(
                    study_name=system.name,
                    storage=storage,
                    direction="maximize",
                    pruner=_PRUNERS[self.request.pruner],
                    load_if_exists=True,
                )
                for system in self.request.tuned
            }
        except Exception as error:  # of SQLAlchemy's and of Optuna's
            raise RunError(f"{path}: not a storage of trials that can be used ({_reason(error)})") from error

    def _counted(self, system: System) -> list[FrozenTrial]:
        return self._study(system).get_trials(deepcopy=False, states=_COUNTED)

    def _trial_folder(self, system: System, number: int) -> Path:
        return self.out / "trials" / f"{system.name}-{number}"

    def _identity(self, system: System) -> dict[str, Any]:
        """Return what decides a search's trials beside their number."""
        settings = {name: value for name, value in self.defaults(system).decisive().items() if name != "data"}
        space = {name: spec.plain() for name, spec in self.searched[system].items()}
        found = {"data": self.dataset.content_hash, "seed": self.request.seed, "pruner": self.request.pruner}
        config = self.defaults(system)
        item_data = self._item_data.of(config, RunFolder(Path(config.out)).item_data)
        found |= {} if item_data is None else {"item_data": item_data}
        return json.loads(json.dumps(found | {"space": space, "settings": settings}))


_PRUNERS = {
    "median": optuna.pruners.MedianPruner(n_startup_trials=_STARTUP - 1, n_warmup_steps=_WARM_UP),
    "none": optuna.pruners.NopPruner(),
}


class _Report(Callback):
    """Tells Optuna each epoch's validation metric and ends the run where the pruner says so; kept with the run."""

    def __init__(self, trial: optuna.Trial):
        self.trial = trial
        self.values: list[float] = []
        self.pruned = False

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Report."""
        self._add(float(trainer.callback_metrics[MONITOR]))
        self.pruned = bool(self.trial.should_prune())  # a NumPy bool, of a median, cannot be read from a checkpoint
        if self.pruned:
            trainer.should_stop = True

    def _add(self, value: float) -> None:
        self.trial.report(value, step=len(self.values))
        self.values.append(value)

    def state_dict(self) -> dict[str, Any]:
        """Keep the metrics of earlier epochs."""
        return {"values": self.values, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Report them again: to Optuna the trial that goes on is another one."""
        self.values, self.pruned = [], state_dict["pruned"]
        for value in state_dict["values"]:
            self._add(value)


def plainly(settings: Mapping[str, Any]) -> str:
    """Return settings in a line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )


def _drawn(trial: optuna.Trial, name: str, spec: Spec) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if isinstance(spec, Choices):
            return trial.suggest_categorical(name, spec.values)
        if spec.whole:
            return trial.suggest_int(name, int(spec.low), int(spec.high), step=int(spec.step or 1), log=spec.log)
        return trial.suggest_float(name, spec.low, spec.high, step=spec.step, log=spec.log)


def _reason(error: BaseException) -> str:
    """Return what SQLite said, where an error of a storage stems from it, without SQL."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__ or cause.__context__
    return str(error if cause is None else cause)


def _finished(number: int, trial: FrozenTrial) -> Trial:
    return Trial(number=number, **trial.user_attrs["plr"])


def _seed(seed: int, system: System, number: int, refused: int) -> int:
    """Return a 32-bit seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {system.name} {number} {refused}".encode()).digest()[:4], "big")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what has changed, of the settings each."""
    found = []
    for name, value in now.items():
        earlier = before.get(name)
        if isinstance(value, dict) and isinstance(earlier, dict):
            for key in dict.fromkeys((*earlier, *value)):
                if earlier.get(key) != value.get(key):
                    found.append(f"{name} of {key}: {earlier.get(key)!r} -> {value.get(key)!r}")
        elif earlier != value:
            found.append(_OTHER_DATA.get(name, f"{name}: {earlier!r} -> {value!r}"))
    return found
