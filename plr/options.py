"""Every option of a run, once: its default, what it accepts and its help stand here, beside what it steers.

A class holds the options of one stage, backbone kind or method; `plr.config.Config` inherits them all, which makes each
a flag and a YAML key. What is built from options takes an object of its class: a `Config` is one of each. This module
imports no PyTorch, so that `plr train --help` need not wait for it.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from plr.errors import ConfigError
from plr.systems import BackboneName, MethodName


@dataclass(frozen=True)
class Check:
    """What an option accepts beside values of its type: in words, for messages, and as a test."""

    accepted: str
    holds: Callable[[Any], bool]


def option(default: Any, *checks: Check) -> Any:
    """Return a dataclass field with this default whose values, unless None, pass the checks."""
    return field(default=default, metadata={"checks": checks})


def at_least(least: int, why: str = "") -> Check:
    """Whole numbers from `least` on."""
    return Check("0 or more" if least == 0 else f"at least {least}{why}", lambda value: value >= least)


def finite_from(least: float) -> Check:
    """Finite numbers from `least` on."""
    return Check(f"a finite number, {least} or more", lambda value: value >= least and math.isfinite(value))


FINITE = Check("a finite number", math.isfinite)


def between(least: float, most: float, why: str) -> Check:
    """Numbers from `least` to `most`, and 0 where the option's other checks let it pass."""
    return Check(f"from {least:g} to {most:g}: {why}", lambda value: value == 0 or least <= value <= most)


POSITIVE = Check("a finite number above 0", lambda value: value > 0 and math.isfinite(value))
BELOW_ONE = Check("in [0, 1)", lambda value: 0 <= value < 1)
INSIDE_ZERO_AND_ONE = Check("in (0, 1)", lambda value: 0 < value < 1)
# float32 tells logits of 10^7 apart to 1; those of 10^-6 hardly from equal ones.
TEMPERATURE = between(1e-6, 1e6, "beyond, float32 cannot tell the items' probabilities apart")
ZERO_TO_ONE = Check("in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_2_63 = Check("below 2^63", lambda value: value < 2**63)
EACH_POSITIVE = Check("positive", lambda values: all(value >= 1 for value in values))
EACH_A_RANK = Check("below 10^18", lambda values: all(value < 10**18 for value in values))


def is_text(value: str) -> bool:
    """Whether a string is no file name in another encoding than UTF-8, which Python reads as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def names(listed: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of a list, or of a string in which commas separate them."""
    return tuple(name.strip() for name in listed.split(",")) if isinstance(listed, str) else tuple(listed)


@cache
def types_of(options: type) -> dict[str, Any]:
    """Return the types of a class' options by name. Read from its annotations, which takes milliseconds, once."""
    return get_type_hints(options)


@dataclass
class Options:
    """Options that check themselves.

    A class with a rule about several of them adds it in `__post_init__`, after that of its bases.

    Raises:
        ConfigError: a value of another type than the option's, or one that its checks refuse; names the option, what
            is accepted and what was found.
    """

    def __post_init__(self) -> None:
        """Check every option; paths become strings, and numbers of NumPy Python's: YAML holds nothing else."""
        kinds = types_of(type(self))  # type: ignore[arg-type]  # of whose objects, not of itself, mypy asks a hash
        for each in fields(self):
            self._check_type(each.name, kinds[each.name])
        for each in fields(self):
            value = getattr(self, each.name)
            for check in each.metadata.get("checks", ()):
                self.require(each.name, value is None or check.holds(value), check.accepted)

    def require(self, name: str, holds: bool, accepted: str) -> None:
        """Refuse the value of the option `name` where `holds` is False, saying what is accepted.

        Raises:
            ConfigError: it is.
        """
        if not holds:
            raise ConfigError(f"{name} must be {accepted}; found {getattr(self, name)!r}")

    def _check_type(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if isinstance(kind, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not types.NoneType)
            if value is None:
                return
        if get_origin(kind) is Literal:
            self.require(name, value in get_args(kind), f"one of {', '.join(get_args(kind))}")
        elif kind is bool:
            self.require(name, isinstance(value, bool), "true or false")
        elif kind is int:
            self.require(name, _is_whole(value), "a whole number")
            setattr(self, name, int(value))
        elif kind is float:
            self.require(name, isinstance(value, Real) and not isinstance(value, bool), "a number")
            setattr(self, name, float(value))
        elif kind is str:
            self.require(name, isinstance(value, (str, os.PathLike)), "a string or a path")
            setattr(self, name, os.fspath(value))
            self.require(name, is_text(getattr(self, name)), "UTF-8 text; rename the file, or give a link to it")
        elif kind == tuple[int, ...]:
            whole = isinstance(value, (list, tuple)) and all(map(_is_whole, value))
            self.require(name, whole, "a list of whole numbers")
            setattr(self, name, tuple(map(int, value)))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass
class RunOptions(Options):
    """What is trained on which data, and where the result goes.

    Args:
        data: a file of interactions, a folder made by `plr prepare`, or the name of one in the folder $PLR_DATA.
        out: the folder the run is written to.
        backbone: the sequence encoder; `plr systems` describes each.
        method: the reasoning on top of it; "base" is the bare backbone.
        phase: LARES: spt, self-supervised pre-training, or rpt, reinforcement post-training of the run `init`.
        init: LARES, phase rpt: the folder of a finished run of phase spt with the same data and sizes.
        from_run: the folder of a finished run to go on from, on newer data, with its weights and Adam's moments, rows
            of items matched by their ids. In `plr train` its options are taken over where none are given.
        new_items: with from_run: where items that the run lacks start: neighbours, the mean of the known items that
            they occur with in training; content, the mean of all known items, so that their features or text alone
            tell them apart; or random. By default content where the model reads features or text, else neighbours.
    """

    data: str = option("")
    out: str = option("")
    backbone: BackboneName = option("sasrec")
    method: MethodName = option("plr")
    phase: Literal["spt", "rpt"] = option("spt")
    init: str | None = option(None)
    from_run: str | None = option(None)
    new_items: Literal["neighbours", "content", "random"] | None = option(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phase == "rpt" and self.method != "lares":
            raise ConfigError(f"phase 'rpt' is a phase of method 'lares'; found method {self.method!r}")
        if self.phase == "rpt" and self.from_run:
            raise ConfigError("from_run is not for phase 'rpt', which starts from the run that init names")
        if self.phase == "rpt" and not self.init:
            raise ConfigError("phase 'rpt' needs --init: the folder of a finished run of --method lares --phase spt")
        if self.phase != "rpt" and self.init:
            raise ConfigError(f"init is for phase 'rpt'; found phase {self.phase!r} with init {self.init!r}")
        if self.new_items and not self.from_run:
            raise ConfigError(f"new_items is for a run that goes on from another, from_run; found {self.new_items!r}")


@dataclass
class RawDataOptions(Options):
    """How a raw file becomes a data set; a prepared folder takes none of these.

    Args:
        format: how to read the data: auto, sequences (user item item ...), pairs (user item), movielens, recbole, csv,
            parquet or huggingface. This and the options down to test_time are for raw data, not for a prepared folder.
        user_column: name of the user column (csv, parquet); by default the usual names are tried.
        item_column: name of the item column.
        rating_column: name of the rating column.
        timestamp_column: name of the timestamp column.
        min_rating: keep interactions rated at least this.
        core: keep users and items with at least this many interactions, repeatedly until all have; 0 keeps all.
        split: time, leave-one-out, leave-k-out, or users, whole users held out; auto takes time where there are
            timestamps, leave-one-out otherwise.
        leave_k: leave-k-out: how many of each user's last interactions are for the test, and as many before them for
            validation; users: how many of a held-out user's last ones are targets.
        valid_users: users split: the share of users held out for validation.
        test_users: users split: the share of users held out for the test.
        split_seed: users split: which users.
        train_time: time split: training targets begin here; what is earlier stands in histories alone.
        valid_time: time split: validation starts here (same unit as the file); default the 80 % quantile.
        test_time: time split: test starts here; default the 90 % quantile.
    """

    format: Literal["auto", "sequences", "pairs", "movielens", "recbole", "csv", "parquet", "huggingface"] = option(
        "auto"
    )
    user_column: str | None = option(None)
    item_column: str | None = option(None)
    rating_column: str | None = option(None)
    timestamp_column: str | None = option(None)
    min_rating: float | None = option(None, FINITE)
    core: int = option(0, at_least(0))
    split: Literal["auto", "leave-one-out", "leave-k-out", "users", "time"] = option("auto")
    leave_k: int = option(1, at_least(1))
    valid_users: float = option(0.1, INSIDE_ZERO_AND_ONE)
    test_users: float = option(0.1, INSIDE_ZERO_AND_ONE)
    split_seed: int = option(0)
    train_time: int | None = option(None)
    valid_time: int | None = option(None)
    test_time: int | None = option(None)


@dataclass
class DataOptions(RawDataOptions):
    """The data of a run: interactions, and what is known about the items.

    Args:
        cache: folder for prepared data; by default data are prepared each time.
        features: a file of item features, whose vectors are added to the items' own: JSON {item: [value ...]} or
            {item: {field: value or [value ...]}}, or Parquet with a column item_id and columns of strings or lists.
        feature_fields: which fields of that file, as a list or separated by commas; by default all but title and text,
            of Parquet those of strings or lists of strings.
        text_vectors: UniSRec: the folder that `plr embed-text` wrote.
    """

    cache: str | None = option(None)
    features: str | None = option(None)
    feature_fields: tuple[str, ...] | str | None = option(None)
    text_vectors: str | None = option(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_fields is not None:
            self.feature_fields = names(self.feature_fields)


@dataclass
class LayerOptions(Options):
    """A Transformer layer.

    Args:
        dim: width d of the states.
        heads: attention heads.
        ffn_dim: inner width of the feed-forward parts.
        hidden_dropout: dropout on hidden representations, p_rep.
        attention_dropout: dropout on attention weights, p_attn.
    """

    dim: int = option(256, at_least(1))
    heads: int = option(2, at_least(1))
    ffn_dim: int = option(300, at_least(1))
    hidden_dropout: float = option(0.5, BELOW_ONE)
    attention_dropout: float = option(0.5, BELOW_ONE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("heads", self.dim % self.heads == 0, f"a divisor of dim={self.dim}")


@dataclass
class EncoderOptions(LayerOptions):
    """The sequence encoder.

    Args:
        max_length: the most recent items of a history that the model sees.
        layers: Transformer layers (LARES: of the pre-block).
        input_dropout: dropout on the input of the encoder and of every reasoning step.
    """

    max_length: int = option(50, at_least(1))
    layers: int = option(2, at_least(1))
    input_dropout: float = option(0.2, BELOW_ONE)


@dataclass
class UniSRecOptions(Options):
    """Item vectors from text.

    Args:
        unisrec_mode: UniSRec: inductive, an item is its text alone, or transductive, plus an id embedding.
        experts: UniSRec: number of experts of the text adaptor.
        adaptor_dropout: UniSRec: dropout on the text vectors, for each expert.
    """

    unisrec_mode: Literal["inductive", "transductive"] = option("inductive")
    experts: int = option(8, at_least(1))
    adaptor_dropout: float = option(0.2, BELOW_ONE)


@dataclass
class RecommenderOptions(Options):
    """What every method has.

    Args:
        temperature: of the item softmax: logits are h·E / temperature. By default the backbone's: 0.07 for
            unisrec, whose scores are cosines, and 1 for the others.
        divergence_share: base, PLR, ERL: the share of a step's histories, drawn at random, from which the divergences
            of kl_weight and consistency_weight, where above 0, are estimated; their weights stay, and a mean over some
            is unbiased.
        loss: what a target is predicted among: softmax, all items; sampled_softmax, itself and sampled ones; bce, a
            sigmoid for the target and for each sampled item; gbce, the same with the target's to a power below 1
            (gSASRec, arXiv 2308.07192). With all but softmax a step reads, and changes, the items that it names alone;
            divergences are between distributions over the sampled ones. Validation ranks all items whatever the loss.
        negatives: how many items are sampled for a step, the same for all of its targets; where mixed, of each kind.
        sampler: where they come from: uniform, all items alike; popularity, as often as they are targets in training;
            in_batch, the batch's targets, all where it has no more; mixed, uniform ones and those of in_batch.
        logq: sampled_softmax: whether the logarithm of how often an item is expected among the sampled ones is
            subtracted from its score, so that the sum over them estimates that over all items without bias.
        gbce_t: gbce: t, from 0, bce, to 1, where the target's sigmoid is calibrated.
    """

    temperature: float | None = option(None, POSITIVE, TEMPERATURE)
    divergence_share: float = option(1.0, Check("in (0, 1]", lambda value: 0 < value <= 1))
    loss: Literal["softmax", "sampled_softmax", "bce", "gbce"] = option("softmax")
    negatives: int = option(256, at_least(1))
    sampler: Literal["uniform", "popularity", "in_batch", "mixed"] = option("uniform")
    logq: bool = option(True)
    gbce_t: float = option(0.75, ZERO_TO_ONE)

    @property
    def mixes_distributions(self) -> bool:
        """Whether the method is trained on and ranks by a mixture of several states' distributions."""
        return False


@dataclass
class ClozeOptions(RecommenderOptions):
    """BERT4Rec as published.

    Args:
        mask_probability: Cloze BERT4Rec: the share ρ of a sequence's items that is masked.
        mask_last_probability: Cloze BERT4Rec: how often a sequence has its last item masked and no other.
    """

    mask_probability: float = option(0.2, INSIDE_ZERO_AND_ONE)
    mask_last_probability: float = option(0.1, ZERO_TO_ONE)


@dataclass
class StepsOptions(RecommenderOptions):
    """Reasoning in a fixed number of steps: PLR, ERL and PRL.

    Args:
        steps: PLR, ERL, PRL: number of reasoning steps T. By default 2, and 1 for PLR's mixture of distributions.
    """

    steps: int | None = option(None, at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is None:
            self.steps = 1 if self.mixes_distributions else 2


@dataclass
class DivergenceOptions(StepsOptions):
    """States that are rewarded for predicting differently: PLR and ERL.

    The divergence has no upper bound, and a loss that rewards it alone would never end: hence the limit.

    Args:
        kl_weight: PLR, ERL: λ, how strongly states are pushed apart; 0 is "w/o KL". By default 0.1, and 0 for PLR's
            mixture of distributions.
        kl_limit: PLR, ERL: the mean divergence, in nats, beyond which no more is rewarded; 0: no limit, as published.
    """

    kl_weight: float | None = option(None, finite_from(0))
    kl_limit: float = option(1.0, finite_from(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_weight is None:  # set here, so that config.yaml says what was used
            self.kl_weight = 0.0 if self.mixes_distributions else 0.1


@dataclass
class ContrastiveWeightOptions(RecommenderOptions):
    """A contrastive loss that can be left out: PLR and PRL.

    Args:
        contrastive_weight: PLR, PRL: weight of the contrastive loss; 0 is "w/o RCL". By default 1, and 0 for PLR's
            mixture of distributions.
    """

    contrastive_weight: float | None = option(None, finite_from(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrastive_weight is None:
            self.contrastive_weight = 0.0 if self.mixes_distributions else 1.0


@dataclass
class ContrastiveTemperatureOptions(RecommenderOptions):
    """Contrastive losses with a temperature of their own: PLR and LARES.

    Args:
        contrastive_temperature: PLR, LARES: τ of the contrastive losses.
    """

    contrastive_temperature: float = option(1.0, POSITIVE, TEMPERATURE)


@dataclass
class ConsistencyOptions(RecommenderOptions):
    """Two dropout masks that should predict the same (R-Drop, arXiv 2106.14448): the bare backbone and PLR.

    Args:
        consistency_weight: base, PLR: weight of the symmetric divergence between the item distributions that a state
            (PLR's mixture: one stream's, drawn by the gate) has under two dropout masks (R-Drop). By default 0, and 1
            for PLR's mixture of distributions.
    """

    consistency_weight: float | None = option(None, finite_from(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.consistency_weight is None:
            self.consistency_weight = 1.0 if self.mixes_distributions else 0.0


@dataclass
class ERLOptions(DivergenceOptions):
    """ReaRec-ERL, which has the shared options alone."""


@dataclass
class PRLOptions(StepsOptions, ContrastiveWeightOptions):
    """ReaRec-PRL. A weight of 0 leaves its loss out, and with it the noisy copy.

    Args:
        progressive_weight: PRL: weight of the predictions of earlier steps.
        temperature_scale: PRL: α, by which the temperature grows with every step before the last.
        noise: PRL: standard deviation of the noise on the inputs of the noisy copy's steps.
        warmup_epochs: PRL: epochs without the noisy copy and its contrastive loss.
    """

    progressive_weight: float = option(1.0, finite_from(0))
    temperature_scale: float = option(5.0, finite_from(1))
    noise: float = option(0.01, finite_from(0))
    warmup_epochs: int = option(2, at_least(0))


@dataclass
class LARESOptions(ContrastiveTemperatureOptions):
    """LARES, phase spt. The core-block's layers are as the encoder's; a weight of 0 leaves its alignment out.

    Args:
        core_layers: LARES: Transformer layers of the core-block.
        mean_steps: LARES: m, the refinements of evaluation; training draws their number at random.
        lares_adapter: LARES: what a step refines: the mean of the last states and the pre-block's, a linear map of both
            ("concat"), or both weighted by one learned gate.
        trajectory_weight: LARES, phase spt: α, of the alignment with another sequence of the same target.
        step_weight: LARES, phase spt: γ, of the alignment of the last step with another.
    """

    core_layers: int = option(2, at_least(1))
    mean_steps: int = option(4, at_least(1))
    lares_adapter: Literal["mean", "concat", "gate"] = option("mean")
    trajectory_weight: float = option(0.1, finite_from(0))
    step_weight: float = option(0.5, finite_from(0))


@dataclass
class LARESPostTrainingOptions(LARESOptions):
    """LARES, phase rpt, in which the alignments' weights mean nothing.

    Args:
        rollouts: LARES, phase rpt: G, how many rollouts of a row are compared.
        reward: LARES, phase rpt: Recall@10 or NDCG@10.
        reference_weight: LARES, phase rpt: β, of the divergence from the run `init`.
    """

    rollouts: int = option(4, at_least(2, ": a rollout is judged by the others of its row"))
    reward: Literal["recall", "ndcg"] = option("recall")
    reference_weight: float = option(1.0, finite_from(0))


@dataclass
class PLROptions(
    DivergenceOptions, ContrastiveWeightOptions, ContrastiveTemperatureOptions, ConsistencyOptions
):
    """Parallel latent reasoning.

    The state that a trigger token is added to leaves a LayerNorm, with standard deviation 1; tokens far below it open
    streams that are the same. The paper states none.

    Args:
        mixture: PLR: distributions, trained on and ranked by the mixture of the streams' item distributions, or states,
            the paper's Eq. 9, one distribution of the mixed states.
        streams: PLR: number of reasoning streams M.
        trigger_std: PLR: standard deviation of the trigger tokens' initial values; the state they are added to has 1.
            By default 1, and 0.02 for mixture states.
        gate: PLR: false weighs the streams equally, "w/o MoRS".
        reasoning: PLR: false takes no step: stream m is a linear map of h_0, "w/o reasoning", a control that tells what
            the reasoning adds to the mixture.
        pooling: PLR: what a stream predicts from: the mean of its steps' states, Eq. 6, or the last one.
        fast_state: PLR: the part of the encoder's own state h_0: none; added to the streams' states in training and
            ranking; component, of the mixture of distributions, with a gate of its own; ranking, added when ranking and
            not trained, Eq. 10 (mixture states). By default none, and ranking for mixture states.
        contrastive_negatives: PLR: what the contrastive loss compares a history with: all of the batch, or others,
            those of another user and with another target; the rest are false negatives.
        load_weight: PLR: weight of a term against a gate that always takes the same streams: ln C − the entropy of the
            batch's mean gate over the C that are mixed, 0 where all are used alike, ln C where one has all.
    """

    mixture: Literal["distributions", "states"] = option("distributions")
    streams: int = option(2, at_least(1))
    trigger_std: float | None = option(None, finite_from(0))
    gate: bool = option(True)
    reasoning: bool = option(True)
    pooling: Literal["mean", "last"] = option("mean")
    fast_state: Literal["none", "added", "component", "ranking"] | None = option(None)
    contrastive_negatives: Literal["all", "others"] = option("all")
    load_weight: float = option(0.0, finite_from(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger_std is None:
            self.trigger_std = 1.0 if self.mixture == "distributions" else 0.02
        if self.fast_state is None:
            self.fast_state = "none" if self.mixture == "distributions" else "ranking"
        refused = "ranking" if self.mixture == "distributions" else "component"
        accepted = ", ".join(name for name in ("none", "added", "component", "ranking") if name != refused)
        self.require("fast_state", self.fast_state != refused, f"one of {accepted} for mixture {self.mixture}")

    @property
    def mixes_distributions(self) -> bool:
        """Whether the streams' distributions are mixed, and not their states."""
        # A whole configuration may name another method.
        return self.mixture == "distributions" and getattr(self, "method", "plr") == "plr"


@dataclass
class TrainingOptions(Options):
    """The training loop.

    Args:
        training_rows: prefix (a row per history and target), sequence (a row per user, encoded once for the targets at
            all its positions), auto: what the method prefers and the backbone can use.
        targets_per_row: sequence rows: deal a user's targets at random, in each epoch anew, to rows of at most this
            many, each with dropout masks of its own; 0: one row has them all.
        min_context: sequence rows: a history longer than max_length is cut into windows that overlap, so that each
            target has at least this many items before it, or all there are. By default three quarters of max_length,
            and 1 (no overlap) for BERT4Rec's Cloze, which reads what follows a position too.
        batch_order: length, rows of like length together, of which little is padded, or shuffled. By default length,
            and shuffled for sequence rows that are counted by rows: of like length together, the few targets of short
            sequences would weigh as much in a step as the many of long ones.
        batch_size: training rows per step, of all devices together. A prefix row has one target; a sequence row has as
            many as its user (in a window), or up to targets_per_row: a step has that many times more targets. Losses
            are means over targets.
        batch_unit: sequence rows: what batch_size counts: rows, or targets; then a step has about as many with sequence
            rows as with prefix rows.
        shuffle_window: how many rows are shuffled at a time, in blocks of 65,536 neighbouring ones that are drawn at
            random; 0, or at least all: all at once. Each process needs 8 bytes for each of them.
        epochs: at most this many.
        patience: stop after this many epochs without a better validation NDCG@10.
        refit: after the best epoch is found on the validation rows, retrain for that many epochs on training and
            validation rows together, and test that model; the validation metrics stay those of the first one.
        accumulate_batches: batches per step of the optimiser: their gradients, weighed by their targets, make that of
            one batch so many times as large. The last step of an epoch has what is left. Terms that compare the
            histories of a batch with each other (contrastive ones) and `kl_limit` stay within each batch.
        lr: learning rate; where warmup_steps or schedule change it, the highest.
        schedule: what follows the warm-up: constant, lr; linear, from lr in equal parts down towards 0, which would be
            reached one step after the last of `epochs` epochs; cosine, the same way along half a cosine. Training that
            stops early, and a refit, follow the schedule of all `epochs`.
        warmup_steps: steps of the optimiser over which the learning rate rises: step i of W has i/W of lr.
        optimizer: adam, or adamw, which differ in weight_decay alone.
        weight_decay: adam: an L2 penalty, weight_decay times each weight is added to its gradient; adamw: each step
            first multiplies every weight by 1 - weight_decay times the learning rate (decoupled, arXiv 1711.05101).
        sparse_adam: where the loss samples items: Adam changes the vectors of the items that a step names alone, and
            their moments, instead of the whole table's: what has no gradient is not moved by its moments either (lazy
            Adam, as torch.optim.SparseAdam).
        average_weights: validate, keep and test an exponential moving average of the weights in place of those after
            the last step: after each step it moves by 1 - average_weights of the way to them (in the first steps by
            more: step i by at least 9 / (i + 9)). Of about 1 / (1 - average_weights) steps; 0 averages none.
        clip: largest gradient norm; 0 does not clip.
        precision: "32", or "bf16" for automatic mixed precision.
        seed: seed of all random numbers.
    """

    training_rows: Literal["auto", "prefix", "sequence"] = option("auto")
    targets_per_row: int = option(0, at_least(0))
    min_context: int | None = option(None, at_least(1))
    batch_order: Literal["length", "shuffled"] | None = option(None)
    batch_size: int = option(2048, at_least(1))
    batch_unit: Literal["rows", "targets"] = option("rows")
    shuffle_window: int = option(0, at_least(0))
    epochs: int = option(200, at_least(1))
    patience: int = option(10, at_least(1))
    refit: bool = option(False)
    accumulate_batches: int = option(1, at_least(1))
    lr: float = option(1e-3, POSITIVE, between(1e-12, 10, "about so far Adam moves each weight in a step"))
    schedule: Literal["constant", "linear", "cosine"] = option("constant")
    warmup_steps: int = option(0, at_least(0))
    optimizer: Literal["adam", "adamw"] = option("adam")
    weight_decay: float = option(0.0, finite_from(0), between(1e-12, 1e6, "its square times a weight's must be finite"))
    sparse_adam: bool = option(True)
    average_weights: float = option(0.0, BELOW_ONE)
    clip: float = option(0.0, finite_from(0), between(1e-6, 1e18, "Adam takes smaller gradients for zero"))
    precision: Literal["32", "bf16"] = option("32")
    seed: int = option(0, at_least(0), BELOW_2_63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "adamw":
            accepted = f"below 1 / lr = {1 / self.lr:g} for optimizer 'adamw', which takes lr times it off each weight"
            self.require("weight_decay", self.lr * self.weight_decay < 1, accepted)


@dataclass
class EvaluationOptions(Options):
    """The ranking of held-out rows.

    Args:
        eval_batch_size: rows per evaluation batch.
        ks: the K of Recall@K, NDCG@K, MRR@K and HR@K; 10 is always among them.
        exclude_seen: do not rank items of the history (in evaluation its last max_length, which the model sees).
        rank_with: what computes the users' states where rows are ranked: the model, or the inference engine where it
            takes the model on CPUs, which is faster and rounds otherwise.
    """

    eval_batch_size: int = option(512, at_least(1))
    ks: tuple[int, ...] = option((10, 20), EACH_POSITIVE, EACH_A_RANK)
    exclude_seen: bool = option(False)
    rank_with: Literal["model", "engine"] = option("model")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ks = tuple(sorted({10, *self.ks}))


@dataclass
class MachineOptions(Options):
    """Where it is computed, and what is shown of it.

    Args:
        accelerator: cpu, gpu (CUDA or ROCm; Apple's are not used), or auto, a gpu where there is one.
        devices: how many devices, or with accelerator cpu processes, train the run: each has a share of every batch. Of
            several machines, how many of each.
        nodes: how many machines train the run; on each, torchrun starts plr.
        shard_items: whether each of several devices has a part of the item table alone, with its gradients and Adam's
            moments, in place of all of it: for tables that one device cannot hold. The result is the same, to rounding.
            For every method but LARES' phase rpt; losses on sampled items without features and texts.
        threads: CPU threads; 0 leaves torch's choice. Bit-equal results need an equal number.
        progress: show a progress bar, or where there is no terminal a line for each epoch.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = option("auto")
    devices: int = option(1, at_least(1))
    nodes: int = option(1, at_least(1))
    shard_items: bool = option(False)
    threads: int = option(0, at_least(0))
    progress: bool = option(True)

    @property
    def processes(self) -> int:
        """How many processes train the run: one for each device of all machines."""
        return self.nodes * self.devices
