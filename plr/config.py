"""One flat configuration: every field is a command-line flag and a YAML key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from plr.errors import ConfigError
from plr.files import atomic_path
from plr.options import (
    ClozeOptions,
    DataOptions,
    EncoderOptions,
    ERLOptions,
    EvaluationOptions,
    LARESPostTrainingOptions,
    MachineOptions,
    PLROptions,
    PRLOptions,
    RunOptions,
    TrainingOptions,
    UniSRecOptions,
)
from plr.systems import BACKBONES, REFUSALS, Method, RowKind, method_of, row_kinds, why_no_sequences


# The options of a base stand behind those of the bases to its right: dataclasses collect fields from the last base on.
@dataclass
class Config(
    MachineOptions,
    EvaluationOptions,
    TrainingOptions,
    LARESPostTrainingOptions,
    PRLOptions,
    ERLOptions,
    PLROptions,
    ClozeOptions,
    UniSRecOptions,
    EncoderOptions,
    DataOptions,
    RunOptions,
):
    """Everything that decides a run.

    Args:
        provenance: written by training: versions and the data's hash. With it the fields are those of a run, in which
            options without an effect (`without_effect`) are set to their defaults; without, they are refused.
    """

    provenance: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_system()
        self._check_loss()
        self._check_sharding()
        if self.temperature is None:  # set here, so that config.yaml says what was used
            self.temperature = BACKBONES[self.backbone].temperature
        if self.from_run and self.new_items is None:
            self.new_items = "content" if self.features or self.text_vectors else "neighbours"
        if (self.row_kind, self.system.row_kinds[0], self.min_context) == ("prefix", "sequence", 1):
            self.min_context = None  # what config.yaml of the bare backbone's earlier runs says
        for name, (default, reason) in self.without_effect().items():
            if self.provenance is None:
                raise ConfigError(f"{name} {reason}; found {getattr(self, name)!r}")
            setattr(self, name, default)
        if self.batch_order is None:
            uneven = self.row_kind == "sequence" and self.batch_unit == "rows"
            self.batch_order = "shuffled" if uneven else "length"
        if self.min_context is None:
            self.min_context = self._default_min_context
        self.require("min_context", self.min_context <= self.max_length, f"at most max_length={self.max_length}")

    @property
    def system(self) -> Method:
        """The configured method, as the backbone means it and the phase trains it."""
        return method_of(self.backbone, self.method, self.phase)

    @property
    def title(self) -> str:
        """Backbone and method, as tables name them."""
        return self.backbone if self.method == "base" else f"{self.backbone} + {self.method}"

    @property
    def row_kind(self) -> RowKind:
        """The kind of training rows: the configured one, or what the method prefers among those possible."""
        return row_kinds(self.backbone, self.system)[0] if self.training_rows == "auto" else self.training_rows

    @property
    def _default_min_context(self) -> int:
        # With Cloze an item in the middle of a window sees what follows too: windows need not overlap.
        follows = self.row_kind == "sequence" and not BACKBONES[self.backbone].causal
        return 1 if follows else -(-3 * self.max_length // 4)

    def without_effect(self) -> dict[str, tuple[Any, str]]:
        """Return the options that were chosen and do nothing here: the default of each, and what it needs."""
        found: dict[str, tuple[Any, str]] = {}
        if self.row_kind != "sequence":
            needs = f"needs sequence rows (training_rows 'sequence'), and these are {self.row_kind} rows"
            if self.min_context not in (None, self._default_min_context):
                found["min_context"] = (self._default_min_context, needs)
            if self.batch_unit != "rows":
                found["batch_unit"] = ("rows", needs)
        weights = self.system.divergences
        if self.divergence_share != 1 and not any(getattr(self, name) for name in weights):
            needs = f"needs {' or '.join(weights)} above 0" if weights else f"needs a divergence: {self.title} has none"
            found["divergence_share"] = (1.0, needs)
        if self.optimizer == "adamw" and not self.weight_decay:
            found["optimizer"] = ("adam", "needs weight_decay above 0: without one adamw is adam")
        if self.loss == "softmax":
            needs = "needs a loss that samples items: loss sampled_softmax, bce or gbce"
            defaults = {"negatives": 256, "sampler": "uniform", "sparse_adam": True}
            for name, default in defaults.items():
                if getattr(self, name) != default:
                    found[name] = (default, needs)
        if self.shard_items and self.processes == 1:
            needs = "needs several devices, which share the items: shard_items false, or devices of at least 2"
            found["shard_items"] = (False, needs)
        if not self.logq and self.loss != "sampled_softmax":
            found["logq"] = (True, "needs loss sampled_softmax: the others have no correction")
        if self.gbce_t != 0.75 and self.loss != "gbce":
            found["gbce_t"] = (0.75, "needs loss gbce")
        if self.new_items not in (None, "content") and self.backbone == "unisrec" and self.unisrec_mode == "inductive":
            needs = "needs items with vectors of their own: an inductive unisrec's are their texts"
            found["new_items"] = ("content", needs)
        return found | self._left_out_of_the_loss()

    def _left_out_of_the_loss(self) -> dict[str, tuple[Any, str]]:
        """Return those of the method's own options that belong to a term or a part that it does not have here."""
        found: dict[str, tuple[Any, str]] = {}

        def refuse(name: str, default: Any, needs: str) -> None:
            if getattr(self, name) != default:
                found[name] = (default, needs)

        contrast, predictions = "needs contrastive_weight above 0", "needs progressive_weight above 0"
        # 0 is no limit, which is as true where there is nothing to limit.
        if self.method in ("plr", "erl") and not self.kl_weight and self.kl_limit:
            refuse("kl_limit", 1.0, "needs kl_weight above 0")
        if self.method == "prl":
            if not self.progressive_weight:
                refuse("temperature_scale", 5.0, predictions)
            if not self.contrastive_weight:
                refuse("noise", 0.01, contrast)
                refuse("warmup_epochs", 2, contrast)
        if self.method == "lares" and self.phase == "spt" and not (self.trajectory_weight or self.step_weight):
            refuse("contrastive_temperature", 1.0, "needs trajectory_weight or step_weight above 0")
        if self.method == "plr":
            if not self.contrastive_weight:
                refuse("contrastive_negatives", "all", contrast)
                refuse("contrastive_temperature", 1.0, contrast)
            if self.kl_weight and self.streams * (self.steps or 1 if self.reasoning else 1) == 1:
                refuse("kl_weight", 0.0 if self.mixes_distributions else 0.1, "needs several states: streams or steps")
            components = self.streams + (self.fast_state == "component")
            if not self.gate or components == 1:
                refuse("load_weight", 0.0, "needs the gate" if not self.gate else "needs several streams")
            if not self.reasoning:
                steps = "needs reasoning true: without it no step is taken"
                refuse("steps", 1 if self.mixes_distributions else 2, steps)
                refuse("trigger_std", 1.0 if self.mixes_distributions else 0.02, steps)
            if not self.reasoning or self.steps == 1:
                refuse("pooling", "mean", "needs several steps: the mean of one is the last")
        return found

    def _check_system(self) -> None:
        """Refuse a backbone, a method, training rows and item sources that do not fit together."""
        backbone = BACKBONES[self.backbone]
        reason = REFUSALS.get((self.backbone, self.method))
        if reason:
            raise ConfigError(f"method {self.method!r} does not work on backbone {self.backbone!r}: {reason}")
        for source in ("features", "text_vectors"):
            given = getattr(self, source)
            if given and source not in backbone.reads:
                readers = ", ".join(name for name, other in BACKBONES.items() if source in other.reads)
                raise ConfigError(f"{source} is not read by backbone {self.backbone!r}; it is by {readers}")
            if not given and source in backbone.needs:
                raise ConfigError(
                    f"{source} is missing: backbone {self.backbone!r} requires it; "
                    "name the folder that `plr embed-text` wrote"
                )
        if self.feature_fields and not self.features:
            raise ConfigError(f"feature_fields {list(self.feature_fields)} were chosen, but features names no file")
        possible = row_kinds(self.backbone, self.system)
        if self.training_rows not in ("auto", *possible):
            reason = f": {why_no_sequences(self.backbone, self.system)}" if self.training_rows == "sequence" else ""
            raise ConfigError(
                f"training_rows must be {' or '.join(possible)} for method {self.method!r} on backbone "
                f"{self.backbone!r}; found {self.training_rows!r}{reason}"
            )
        if self.method == "lares" and self.row_kind == "sequence" and self.trajectory_weight:
            raise ConfigError(
                "training_rows 'sequence' needs trajectory_weight 0 for method 'lares': that term aligns a row with "
                f"another one of the same target, and a sequence row has many; found {self.trajectory_weight:g}"
            )
        if self.targets_per_row and (self.row_kind != "sequence" or not backbone.causal):
            raise ConfigError(
                "targets_per_row is for sequence rows of a causal backbone; "
                f"found {self.targets_per_row} with {self.row_kind} rows on backbone {self.backbone!r}"
            )

    def _check_loss(self) -> None:
        """Refuse a loss on sampled items that the rest of the configuration cannot have."""
        if self.loss == "softmax":
            return
        if self.system.no_sampling:
            raise ConfigError(
                f"loss must be softmax for method {self.method!r} on backbone {self.backbone!r}; found {self.loss!r}: "
                f"{self.system.no_sampling}"
            )
        if self.loss in ("bce", "gbce") and self.mixes_distributions:
            raise ConfigError(
                f"loss must be softmax or sampled_softmax for mixture 'distributions', found {self.loss!r}: the "
                "streams' softmax distributions are mixed, and sigmoids leave each stream's sum over the items "
                "untrained; take mixture states"
            )
        if self.loss == "gbce" and self.sampler != "uniform":
            raise ConfigError(
                "sampler must be uniform for loss 'gbce', the power of which follows from uniform negatives; "
                f"found {self.sampler!r}"
            )
        if self.sparse_adam and self.weight_decay:
            raise ConfigError(
                f"weight_decay must be 0 with sparse_adam, which would decay only the items that a step names; found "
                f"{self.weight_decay:g}. sparse_adam false takes the whole table"
            )
        if self.sparse_adam and self.average_weights:
            raise ConfigError(
                "average_weights must be 0 with sparse_adam, whose steps leave most of the table alone, while an "
                f"average takes all of it; found {self.average_weights:g}. sparse_adam false takes the whole table"
            )

    def _check_sharding(self) -> None:
        """Refuse what cannot be had together with an item table that processes share."""
        if not self.shard_items:
            return
        together = "with shard_items true"
        if self.system.no_sharding:
            raise ConfigError(
                f"shard_items must be false for phase {self.phase!r} of method {self.method!r}: "
                f"{self.system.no_sharding}"
            )
        if not BACKBONES[self.backbone].shares_items:
            raise ConfigError(
                f"shard_items must be false for backbone {self.backbone!r}: it makes the vectors of all items at once"
            )
        if self.loss != "softmax" and (self.features or self.text_vectors):
            found = "text_vectors" if self.text_vectors else "features"
            raise ConfigError(
                f"loss must be softmax {together} and {found}, found {self.loss!r}: a process would make the vectors "
                "of all its items to sample some"
            )
        if self.rank_with != "model":
            raise ConfigError(f"rank_with must be model {together}, found {self.rank_with!r}: the engine has all items")

    @classmethod
    def effective(cls, **values: Any) -> Config:
        """Return the configuration of these values in which what has no effect beside the others has its default.

        Raises:
            ConfigError: values cannot be taken.
        """
        run = asdict(cls(**values, provenance={}))
        del run["provenance"]
        return cls(**run)

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide the result, for telling whether a run may be resumed."""
        elsewhere = {"out", "cache", "progress", "provenance", "threads", "devices", "nodes", "shard_items"}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}

    def plain(self) -> dict[str, Any]:
        """Return all fields as values of YAML."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def save(self, path: Path) -> None:
        """Write all fields as YAML; the file can be given back as --config."""
        values = self.plain()
        with atomic_path(path) as aside:
            aside.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; unknown keys and values that cannot work are named."""
        values = read_fields(path)
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"{path}: unknown fields {unknown}; known are {sorted(known)}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


FORMER_VALUES = {"mixture": "states", "batch_order": "length", "consistency_weight": 0.0}
"""What a run's config.yaml of an earlier version, which lacks the field, stands for where that is not the default."""


def read_fields(path: Path) -> dict[str, Any]:
    """Read a YAML file of configuration fields, without looking at them; a field that came later has its former value.

    Raises:
        ConfigError: it is no such file, or a field occurs twice; names the file and the line.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        found = "nothing" if values is None else repr(values)
        raise ConfigError(f"{path}: expected a mapping, lines of 'field: value'; found {found}")
    return FORMER_VALUES | values if "provenance" in values else values


_DERIVED = (
    "temperature", "steps", "kl_weight", "contrastive_weight", "consistency_weight", "trigger_std", "fast_state",
    "min_context", "batch_order", "new_items",
)  # fmt: skip
"""The options whose defaults depend on other options: the backbone, the method, the mixture, the length or the rows."""


OF_THE_DATA = ("train_time", "valid_time", "test_time")
"""The times at which a run's data were cut: a run that goes on from it has other data."""


INTERACTIONS = "interactions.parquet"
"""The frame that a run was trained on, in its folder."""


def is_own_frame(config: Config) -> bool:
    """Whether a run was trained on a frame, which its folder holds."""
    data = Path(config.data)
    return data.name == INTERACTIONS and data.parent == Path(config.out)


_WITHOUT_EFFECT = (
    "min_context", "batch_unit", "divergence_share", "optimizer", "contrastive_negatives", "load_weight", "negatives",
    "sampler", "logq", "gbce_t", "sparse_adam", "shard_items", "new_items", "kl_limit", "temperature_scale", "noise",
    "warmup_epochs", "contrastive_temperature", "steps", "trigger_std", "pooling", "kl_weight",
)  # fmt: skip
"""The options that `Config.without_effect` knows."""


def without_derived(values: dict[str, Any]) -> dict[str, Any]:
    """Return a run's fields without those that are what its backbone, method and mixture make of an option not given.

    With another method, say, they become that method's own defaults; with the same one they become what they were.
    """
    try:
        run = Config(**{**values, "provenance": {}})
        # What had no effect on the run is refused where it is chosen: its default says the same.
        values = values | {name: getattr(run, name) for name in _WITHOUT_EFFECT if name in values}
        own = Config(**{name: value for name, value in values.items() if name not in _DERIVED})
    except (ConfigError, TypeError):  # said where the fields are used
        return values
    return {name: value for name, value in values.items() if name not in _DERIVED or value != getattr(own, name)}


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML silently keeps the last of duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    problem = f"{key.value!r} occurs a second time"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)
