"""One flat configuration: every field is a command-line flag and a YAML key."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from plr.errors import ConfigError
from plr.files import atomic_path


def names(listed: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of a list, or of a string in which commas separate them."""
    return tuple(name.strip() for name in listed.split(",")) if isinstance(listed, str) else tuple(listed)


@dataclass
class Config:
    """Everything that decides a run.

    Args:
        data: a file of interactions, a folder made by `plr prepare`, or the name of one in the folder $PLR_DATA.
        out: the folder the run is written to.
        backbone: the sequence encoder; `plr systems` describes each.
        method: the reasoning on top of it; "base" is the bare backbone.
        phase: LARES: spt, self-supervised pre-training, or rpt, reinforcement post-training of the run `init`.
        init: LARES, phase rpt: the folder of a finished run of phase spt with the same data and sizes.
        format: how to read the data: auto, sequences (user item item ...), pairs (user item), movielens, recbole, csv,
            parquet or huggingface. This and the options down to test_time are for raw data, not for a prepared folder.
        user_column: name of the user column (csv, parquet); by default the usual names are tried.
        item_column: name of the item column.
        rating_column: name of the rating column.
        timestamp_column: name of the timestamp column.
        min_rating: keep interactions rated at least this.
        core: keep users and items with at least this many interactions, repeatedly until all have; 0 keeps all.
        split: auto takes time where there are timestamps, leave-one-out otherwise.
        valid_time: time split: validation starts here (same unit as the file); default the 80 % quantile.
        test_time: time split: test starts here; default the 90 % quantile.
        max_length: the most recent items of a history that the model sees.
        cache: folder for prepared data; by default data are prepared anew.
        features: a file of item features, whose vectors are added to the items' own: JSON {item: [value ...]} or
            {item: {field: value or [value ...]}}, or Parquet with a column item_id and columns of strings or lists.
        feature_fields: which fields of that file, as a list or separated by commas; by default all but title and text.
        text_vectors: UniSRec: the folder that `plr embed-text` wrote.
        dim: width d of the states.
        layers: Transformer layers (LARES: of the pre-block).
        heads: attention heads.
        ffn_dim: inner width of the feed-forward parts.
        input_dropout: dropout on the input of the encoder and of every reasoning step.
        hidden_dropout: dropout on hidden representations, p_rep.
        attention_dropout: dropout on attention weights, p_attn.
        temperature: of the item softmax: logits are h·E / temperature. By default the backbone's: 0.07 for
            unisrec, whose scores are cosines, and 1 for the others.
        mask_probability: Cloze BERT4Rec: the share ρ of a sequence's items that is masked.
        mask_last_probability: Cloze BERT4Rec: how often a sequence has its last item masked and no other.
        unisrec_mode: UniSRec: inductive, an item is its text alone, or transductive, plus an id embedding.
        experts: UniSRec: number of experts of the text adaptor.
        adaptor_dropout: UniSRec: dropout on the text vectors, for each expert.
        streams: PLR: number of reasoning streams M.
        steps: PLR, ERL, PRL: number of reasoning steps T.
        trigger_std: PLR: standard deviation of the trigger tokens' initial values; the state they are added to has 1.
        kl_weight: PLR, ERL: λ, how strongly states are pushed apart; 0 is "w/o KL".
        kl_limit: PLR, ERL: the mean divergence, in nats, beyond which no more is rewarded; 0: no limit, as published.
        contrastive_weight: PLR, PRL: weight of the contrastive loss; 0 is "w/o RCL".
        contrastive_temperature: PLR, LARES: τ of the contrastive losses.
        gate: PLR: false averages the streams, "w/o MoRS".
        progressive_weight: PRL: weight of the predictions of earlier steps.
        temperature_scale: PRL: α, by which the temperature grows with every step before the last.
        noise: PRL: standard deviation of the noise on the inputs of the noisy copy's steps.
        warmup_epochs: PRL: epochs without the noisy copy and its contrastive loss.
        core_layers: LARES: Transformer layers of the core-block.
        mean_steps: LARES: m, the refinements of evaluation; training draws their number at random.
        lares_adapter: LARES: what a step refines: the mean of the last states and the pre-block's, a linear map of both
            ("concat"), or both weighted by one learned gate.
        trajectory_weight: LARES, phase spt: α, of the alignment with another sequence of the same target.
        step_weight: LARES, phase spt: γ, of the alignment of the last step with another.
        rollouts: LARES, phase rpt: G, how many rollouts of a row are compared.
        reward: LARES, phase rpt: Recall@10 or NDCG@10.
        reference_weight: LARES, phase rpt: β, of the divergence from the run `init`.
        training_rows: prefix (a row per history and target), sequence (a row per user, all positions), auto: what
            the method prefers and the backbone can use.
        batch_size: training rows per step.
        eval_batch_size: rows per evaluation batch.
        epochs: at most this many.
        patience: stop after this many epochs without a better validation NDCG@10.
        refit: after the best epoch is found on the validation rows, train anew for that many epochs on training and
            validation rows together, and test that model; the validation metrics stay those of the first one.
        lr: learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        clip: largest gradient norm; 0 does not clip.
        precision: "32", or "bf16" for automatic mixed precision.
        seed: of everything random.
        ks: the K of Recall@K, NDCG@K, MRR@K and HR@K; 10 is always among them.
        exclude_seen: do not rank items of the history (in evaluation its last max_length, which the model sees).
        accelerator: auto, cpu or gpu.
        devices: how many of them.
        threads: CPU threads; 0 leaves torch's choice. Bit-equal results need an equal number.
        progress: show a progress bar.
        provenance: written by training: versions and the data's hash. Ignored when read.
    """

    data: str = ""
    out: str = ""
    backbone: Literal["sasrec", "bert4rec", "bert4rec-cloze", "unisrec"] = "sasrec"
    method: Literal["base", "erl", "prl", "lares", "plr"] = "plr"
    phase: Literal["spt", "rpt"] = "spt"
    init: str | None = None

    format: Literal["auto", "sequences", "pairs", "movielens", "recbole", "csv", "parquet", "huggingface"] = "auto"
    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    timestamp_column: str | None = None
    min_rating: float | None = None
    core: int = 0
    split: Literal["auto", "leave-one-out", "time"] = "auto"
    valid_time: int | None = None
    test_time: int | None = None
    max_length: int = 50
    cache: str | None = None
    features: str | None = None
    feature_fields: tuple[str, ...] | str | None = None
    text_vectors: str | None = None

    dim: int = 256
    layers: int = 2
    heads: int = 2
    ffn_dim: int = 300
    input_dropout: float = 0.2
    hidden_dropout: float = 0.5
    attention_dropout: float = 0.5
    temperature: float | None = None

    mask_probability: float = 0.2
    mask_last_probability: float = 0.1

    unisrec_mode: Literal["inductive", "transductive"] = "inductive"
    experts: int = 8
    adaptor_dropout: float = 0.2

    streams: int = 2
    steps: int = 2
    trigger_std: float = 0.02
    kl_weight: float = 0.1
    kl_limit: float = 1.0
    contrastive_weight: float = 1.0
    contrastive_temperature: float = 1.0
    gate: bool = True
    progressive_weight: float = 1.0
    temperature_scale: float = 5.0
    noise: float = 0.01
    warmup_epochs: int = 2
    core_layers: int = 2
    mean_steps: int = 4
    lares_adapter: Literal["mean", "concat", "gate"] = "mean"
    trajectory_weight: float = 0.1
    step_weight: float = 0.5
    rollouts: int = 4
    reward: Literal["recall", "ndcg"] = "recall"
    reference_weight: float = 1.0

    training_rows: Literal["auto", "prefix", "sequence"] = "auto"
    batch_size: int = 2048
    eval_batch_size: int = 512
    epochs: int = 200
    patience: int = 10
    refit: bool = False
    lr: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 0.0
    precision: Literal["32", "bf16"] = "32"
    seed: int = 0
    ks: tuple[int, ...] = (10, 20)
    exclude_seen: bool = False
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    threads: int = 0
    progress: bool = True
    provenance: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # Imported here because the registry imports this module.
        from plr.models.registry import BACKBONES, check_system

        self._check_types()
        self.ks = tuple(sorted({10, *self.ks}))
        if self.feature_fields is not None:
            self.feature_fields = names(self.feature_fields)
        check_system(self)
        if self.temperature is None:  # set here, so that config.yaml says what was used
            self.temperature = BACKBONES[self.backbone].temperature
        for name in ("dim", "layers", "heads", "ffn_dim", "max_length", "experts", "streams", "steps", "core_layers",
                     "mean_steps", "batch_size", "eval_batch_size", "epochs", "patience", "devices"):  # fmt: skip
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("core", "seed", "threads", "warmup_epochs"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", self.seed < 2**63, "below 2^63")
        if self.min_rating is not None:
            self._require("min_rating", math.isfinite(self.min_rating), "a finite number")
        for name in ("input_dropout", "hidden_dropout", "attention_dropout", "adaptor_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("mask_probability", 0 < self.mask_probability < 1, "in (0, 1)")
        self._require("mask_last_probability", 0 <= self.mask_last_probability <= 1, "in [0, 1]")
        for name in ("temperature", "contrastive_temperature", "lr"):
            value = getattr(self, name)
            self._require(name, value > 0 and math.isfinite(value), "a finite number above 0")
        for name in ("trigger_std", "kl_weight", "kl_limit", "contrastive_weight", "progressive_weight", "noise",
                     "trajectory_weight", "step_weight", "reference_weight", "weight_decay", "clip"):  # fmt: skip
            value = getattr(self, name)
            self._require(name, value >= 0 and math.isfinite(value), "a finite number, 0 or more")
        self._require("rollouts", self.rollouts >= 2, "at least 2: a rollout is judged by the others of its row")
        self._check_phase()
        scale = self.temperature_scale
        self._require("temperature_scale", scale >= 1 and math.isfinite(scale), "a finite number, 1 or more")
        self._require("ks", min(self.ks) >= 1, "positive")
        self._require("heads", self.dim % self.heads == 0, f"a divisor of dim={self.dim}")

    def _require(self, name: str, holds: bool, accepted: str) -> None:
        if not holds:
            raise ConfigError(f"{name} must be {accepted}; found {getattr(self, name)!r}")

    def _check_types(self) -> None:
        """Refuse values of another kind than the field's: YAML and Python check nothing.

        Paths become strings, and numbers of NumPy Python's: config.yaml holds nothing else.
        """
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(kind, types.UnionType):
                kind = next(part for part in get_args(kind) if part is not types.NoneType)
                if value is None:
                    continue
            if get_origin(kind) is Literal:
                self._require(name, value in get_args(kind), f"one of {', '.join(get_args(kind))}")
            elif kind is bool:
                self._require(name, isinstance(value, bool), "true or false")
            elif kind is int:
                self._require(name, _is_whole(value), "a whole number")
                setattr(self, name, int(value))
            elif kind is float:
                self._require(name, isinstance(value, Real) and not isinstance(value, bool), "a number")
                setattr(self, name, float(value))
            elif kind is str:
                self._require(name, isinstance(value, (str, os.PathLike)), "a string or a path")
                setattr(self, name, os.fspath(value))
            elif name == "ks":
                self._require(
                    name, isinstance(value, (list, tuple)) and all(map(_is_whole, value)), "a list of whole numbers"
                )
                self.ks = tuple(map(int, value))

    def _check_phase(self) -> None:
        if self.phase == "rpt" and self.method != "lares":
            raise ConfigError(f"phase 'rpt' is a phase of method 'lares'; found method {self.method!r}")
        if self.phase == "rpt" and not self.init:
            raise ConfigError("phase 'rpt' needs --init: the folder of a finished run of --method lares --phase spt")
        if self.phase != "rpt" and self.init:
            raise ConfigError(f"init is for phase 'rpt'; found phase {self.phase!r} with init {self.init!r}")

    def decisive(self) -> dict[str, Any]:
        """Return the fields that decide the result, for telling whether a run may be resumed."""
        elsewhere = {"out", "cache", "progress", "provenance", "threads"}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}

    def save(self, path: Path) -> None:
        """Write all fields as YAML; the file can be given back as --config."""
        values = asdict(self)
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
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


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_fields(path: Path) -> dict[str, Any]:
    """Read a YAML file of configuration fields, without looking at them.

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
    return values


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    problem = f"{key.value!r} occurs a second time"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)
