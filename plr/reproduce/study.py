"""One reproduction: its data, its systems, their runs, and what was measured on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from plr.config import Config
from plr.data import Batch, Rows, SequenceDataset
from plr.errors import ConfigError, RunError
from plr.files import atomic_path
from plr.inputs import OPTIONS, ItemDataHashes, load_dataset
from plr.models import RecommenderModel, build_model
from plr.reproduce.presets import METHODS, ON_ASKING, REINFORCED, Preset
from plr.reproduce.request import Request, settings_of
from plr.reproduce.sample import sampled
from plr.runs import RunFolder, load_weights
from plr.version import __version__

__all__ = ["BASES", "LABELS", "Run", "Study", "System"]

BASES = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "unisrec": "UniSRec"}
LABELS = {
    "erl": "ReaRec-ERL", "prl": "ReaRec-PRL", "lares": "LARES", REINFORCED: "LARES, reinforced",
    "plr-states": "PLR as printed", "plr": "PLR (mixture)",
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """A backbone with a method, and the settings in which it differs from that of Table 2."""

    backbone: str
    method: str
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """As tables name it, without what was changed."""
        return BASES[self.backbone] if self.method == "base" else LABELS[self.method]

    @property
    def first_phase(self) -> System | None:
        """The system whose run with the same seed a run of this one starts from; None: it starts from nothing."""
        return replace(self, method="lares") if self.method == REINFORCED else None

    @property
    def name(self) -> str:
        """As its runs' folders begin."""
        return "-".join([self.backbone, self.method, *(f"{name}{_short(value)}" for name, value in self.changes)])


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@dataclass(frozen=True)
class Run:
    """A system with a seed."""

    system: System
    seed: int

    @property
    def first_phase(self) -> Run | None:
        """The run that it starts from, where it is a second phase."""
        first = self.system.first_phase
        return None if first is None else Run(first, self.seed)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.system.name}-seed{self.seed}"


class Study:
    """What all tables and figures of one reproduction share.

    Args:
        request: what was asked for.

    Raises:
        DataError, ConfigError: the data cannot be used.
    """

    def __init__(self, request: Request):
        self.request = request
        self.out = Path(request.out)
        self.failed: dict[Run, str] = {}  # why runs have no result
        self._own: set[Run] = set()  # those that are known to be finished, and of this study

    @property
    def preset(self) -> Preset:
        """Sizes, budgets and grids."""
        return self.request.sizes

    @property
    def seeds(self) -> range:
        """Of the runs of each system."""
        return range(self.request.seeds or self.preset.seeds)

    @cached_property
    def data(self) -> str:
        """The data of all runs: the file or folder that was named, or the folder of the sample of it."""
        if not self._sample:
            return self.request.data
        common = self.common("sasrec", "base")
        raw = {name: common[name] for name in OPTIONS if name in common}
        return str(sampled(Config(data=self.request.data, **raw), self._sample, self.out / "data"))

    @property
    def _sample(self) -> int:
        return self.preset.sample if self.request.sample is None else self.request.sample

    @cached_property
    def dataset(self) -> SequenceDataset:
        """The data of all runs."""
        return load_dataset(self.config(Run(System("sasrec", "base"), 0)))

    @cached_property
    def _item_data(self) -> ItemDataHashes:
        return ItemDataHashes(self.dataset.item_ids)

    @property
    def has_data(self) -> bool:
        """Whether any data were named."""
        return bool(self.request.data)

    @property
    def backbones(self) -> list[str]:
        """The backbones of Table 2: those asked for, unisrec only where it has text vectors."""
        chosen = self.request.backbones or self.preset.backbones
        return [name for name in chosen if name != "unisrec" or "text_vectors" in self.common(name, "base")]

    @property
    def methods(self) -> list[str]:
        """The methods of Table 2."""
        return list(self.request.methods or METHODS)

    def table_2(self) -> list[System]:
        """Return the cells of Table 2."""
        return [System(backbone, method) for backbone in self.backbones for method in self.methods]

    def common(self, backbone: str, method: str) -> dict[str, Any]:
        """Return the settings of a cell of Table 2."""
        values = self.preset.common | self.preset.methods[method]
        if backbone == "unisrec":  # its scores are cosines: what was published for dot products is not for it
            values = {name: value for name, value in values.items() if name != "temperature"}
        # What is set of LARES is set of both of its phases, which must have the same sizes.
        named = (backbone, "lares", method) if method == REINFORCED else (backbone, method)
        values |= settings_of(self.request.settings, named)
        # What is set for all is for the backbones that read it; what names the backbone is refused with the run.
        unread = ("features", "feature_fields") if backbone == "unisrec" else ("text_vectors",)
        own = settings_of((each for each in self.request.settings if each.startswith(f"{backbone}:")), (backbone,))
        return {name: value for name, value in values.items() if name not in unread or name in own}

    def system(self, backbone: str, method: str, **changes: Any) -> System:
        """Return a system with some settings changed: those that it has already are no change."""
        kept = dict(changes)
        wanted = self.config_of(System(backbone, method, tuple(kept.items()))).decisive()
        for name in changes:  # one by one: an option may decide another's default
            others = {other: value for other, value in kept.items() if other != name}
            if self.config_of(System(backbone, method, tuple(others.items()))).decisive() == wanted:
                kept = others
        return System(backbone, method, tuple(kept.items()))

    def runs(self, systems: Iterable[System], seeds: Iterable[int] | None = None) -> list[Run]:
        """Return the runs of the systems, seed by seed: an interrupted reproduction has complete first seeds."""
        systems = list(dict.fromkeys(systems))
        return [Run(system, seed) for seed in (self.seeds if seeds is None else seeds) for system in systems]

    def config(self, run: Run) -> Config:
        """Return the configuration of a run.

        Raises:
            ConfigError: settings that do not fit together; names the run.
        """
        return self._config(run.system, run.seed, data=self.data, out=str(self.out / "runs" / run.name))

    def _config(self, system: System, seed: int, **places: Any) -> Config:
        values = self.common(system.backbone, system.method) | dict(system.changes)
        if (first := Run(system, seed).first_phase) is not None:
            places["init"] = str(self.folder(first).path)
            if values.get("refit"):
                raise ConfigError(
                    f"{system.name}: starts from a run that may not be refitted on the validation rows; set refit=false"
                )
        if self._sample:  # it is a prepared folder
            values = {name: value for name, value in values.items() if name not in OPTIONS}
        if self.request.processes > 1:
            values.setdefault("threads", max(1, torch.get_num_threads() // self.request.processes))
        make: Callable[..., Config] = Config
        if system.changes:
            self._config(System(system.backbone, system.method), seed, **places)  # what is set has to have an effect
            make = Config.effective  # and what was set of the part that a variant lacks has its default there
        try:
            return make(**places, backbone=system.backbone, seed=seed, progress=False, **values)
        except ConfigError as error:
            raise ConfigError(f"{system.name}: {error}") from error

    def config_of(self, system: System) -> Config:
        """Return the settings of a system's runs, without their data and place."""
        return self._config(system, 0)

    def folder(self, run: Run) -> RunFolder:
        """Return the folder of a run, finished or not."""
        return RunFolder(self.out / "runs" / run.name)

    def finished(self, run: Run) -> bool:
        """Whether the run is finished.

        Raises:
            RunError: its folder holds a run of another configuration, on other data, or with other item data.
        """
        folder, config = self.folder(run), self.config(run)
        item_data = self._item_data.of(config, folder.item_data)
        if not folder.finished_as(config, self.dataset.content_hash, item_data):
            return False
        if run.first_phase is not None and self.folder(run.first_phase).finished():
            weights = self.folder(run.first_phase).read_metrics()["files"]["model.safetensors"]
            if (Config.load(folder.config).provenance or {}).get("init_hash") != weights:
                raise RunError(
                    f"{folder.path} starts from other weights than those of {run.first_phase.name}; delete its folder"
                )
        return True

    def done(self, system: System, seeds: Iterable[int] | None = None) -> list[Run]:
        """Return the finished runs of a system.

        One that an earlier command left in the folder, of other settings or on other data, is none of them.
        """
        return [run for run in self.runs([system], seeds) if run not in self.failed and self._is_own(run)]

    def _is_own(self, run: Run) -> bool:
        if run not in self._own:
            try:
                if not self.finished(run):
                    return False
            except RunError:
                return False
            self._own.add(run)
        return True

    def test_metric(self, run: Run, name: str) -> float:
        """Return a test metric of a finished run."""
        return self.folder(run).test_metric(name)

    def model(self, run: Run) -> RecommenderModel:
        """Return the model of a finished run, in evaluation mode."""
        folder = self.folder(run)
        folder.check_hashes()
        config = Config.load(folder.config)
        model = build_model(config, folder.read_item_data(config))
        load_weights(model, folder.weights)
        return model.eval()

    def test_rows(self, run: Run) -> Rows:
        """Return the test rows as the run's model reads them."""
        return self.dataset.rows("test", self.config(run).max_length)

    def some_test_batch(self, run: Run) -> Batch:
        """Return test rows drawn at random, the same for all runs: as many as the preset looks at."""
        rows = self.test_rows(run)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(rows), generator=generator)[: self.preset.users].sort().values
        return rows.batch(chosen)

    def measured(self, kind: str, run: Run, compute: Callable[[], Any], **arguments: Any) -> Any:
        """Return what `compute` measures on a finished run; kept, so that it is measured once.

        Args:
            kind: what is measured.
            run: on which run.
            compute: returns what JSON can hold.
            arguments: what else decides the result, as JSON can hold it.
        """
        weights = self.folder(run).read_metrics()["files"]["model.safetensors"]
        # Settings that training does not read, and other test rows, leave the weights what they were.
        decisive = self.config(run).decisive()
        settings = {name: value for name, value in decisive.items() if name not in ("data", "init")}
        key = {"weights": weights, "data": self.dataset.content_hash, "settings": settings, **arguments}
        return self.kept(f"{kind}-{run.name}", compute, json.loads(json.dumps(key)))  # as it is read again

    def kept(self, name: str, compute: Callable[[], Any], key: Mapping[str, Any]) -> Any:
        """Return what an earlier call computed with the same key, or compute and keep it."""
        path = self.out / "measured" / f"{name}.json"
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["key"] == key:
                    return kept["value"]
            except (ValueError, KeyError, TypeError):
                pass  # damaged: measured again
        value = compute()
        with atomic_path(path) as aside:
            aside.write_text(json.dumps({"key": key, "value": value}), encoding="utf-8")
        return json.loads(json.dumps(value))  # as the next call will have it

    @cached_property
    def identity(self) -> str:
        """What the report's sections have in common: version, data, preset and settings."""
        data = self.dataset.content_hash if self.has_data else ""
        parts = [
            __version__,
            data,
            self.request.preset,
            # By system: of two that set one field the later one counts.
            {
                f"{backbone}-{method}": self.common(backbone, method)
                for backbone in BASES
                for method in METHODS | ON_ASKING
            },
            len(self.seeds),
            self.backbones,
            self.methods,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
