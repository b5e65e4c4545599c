"""Names to models: a new backbone or method is one entry here, a pair that does not fit one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plr.config import Config
from plr.errors import ConfigError
from plr.items import ItemData
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import FeatureItemEncoder, IdItemEncoder, ItemEncoder
from plr.models.items.unisrec import TextItemEncoder
from plr.models.methods.base import BaseRecommender
from plr.models.methods.cloze import ClozeRecommender
from plr.models.methods.erl import ERLRecommender
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.models.methods.plr import PLRRecommender
from plr.models.methods.prl import PRLRecommender
from plr.models.recommender import Recommender


@dataclass(frozen=True)
class Backbone:
    """A sequence encoder's kind together with what its items are.

    Attributes:
        description: one sentence, and where the system was published.
        causal: whether a position may not read what follows it.
        row_kinds: the training rows that an encoder of this kind may see.
        items: builds the item encoder.
        temperature: the softmax temperature where the configuration names none.
        reads: which of the configuration's item sources ("features", "text_vectors") it makes use of.
        needs: which of them it cannot do without.
        base: what method "base" means here, where the bare backbone has its own way of training.
        extra_positions: positions beside those of the items.
    """

    description: str
    causal: bool
    items: Callable[[Config, ItemData], ItemEncoder]
    row_kinds: tuple[str, ...] = ("sequence", "prefix")
    temperature: float = 1.0
    reads: tuple[str, ...] = ("features",)
    needs: tuple[str, ...] = ()
    base: Method | None = None
    extra_positions: int = 0


@dataclass(frozen=True)
class Method:
    """A recommender class and how its own options are read from the configuration.

    Attributes:
        model: the class.
        options: its own options.
        description: one sentence, and where the method was published.
        post_training: the class and the options of phase "rpt", where the method has one.
    """

    model: type[Recommender]
    options: Callable[[Config], dict[str, Any]]
    description: str = ""
    post_training: Method | None = None

    def of_phase(self, phase: str) -> Method:
        """Return the method as phase "spt" or "rpt" trains it."""
        return self.post_training if phase == "rpt" and self.post_training else self


def _id_items(config: Config, data: ItemData) -> ItemEncoder:
    if data.features:
        return FeatureItemEncoder(data.num_items, config.dim, data.features)
    return IdItemEncoder(data.num_items, config.dim)


def _text_items(config: Config, data: ItemData) -> ItemEncoder:
    if data.text is None:
        raise ConfigError(f"backbone {config.backbone!r} needs the items' text vectors: set text_vectors")
    return TextItemEncoder(
        data.text,
        config.dim,
        experts=config.experts,
        dropout=config.adaptor_dropout,
        transductive=config.unisrec_mode == "transductive",
    )


BACKBONES = {
    "sasrec": Backbone(
        "causal self-attention over the items; method base predicts the next item at every position "
        "(SASRec, Kang and McAuley 2018, with full cross-entropy)",
        causal=True,
        items=_id_items,
    ),
    "bert4rec": Backbone(
        "attention both ways over the items, next-item loss on prefixes, reasoning tokens causal behind them "
        "(BERT4Rec as a reasoning backbone in ReaRec, 2025; not trained by Cloze)",
        causal=False,
        items=_id_items,
        row_kinds=("prefix",),
    ),
    "bert4rec-cloze": Backbone(
        "attention both ways, trained to fill in masked items, ranks at an appended mask "
        "(BERT4Rec as published, Sun et al. 2019); a baseline of its own",
        causal=False,
        items=_id_items,
        row_kinds=("sequence",),
        base=Method(
            ClozeRecommender,
            lambda config: {
                "dim": config.dim,
                "mask_probability": config.mask_probability,
                "mask_last_probability": config.mask_last_probability,
            },
        ),
        extra_positions=1,
    ),
    "unisrec": Backbone(
        "SASRec's encoder over item vectors made from text by a mixture of whitening experts, scored by cosine "
        "(UniSRec, Hou et al. 2022); inductive: text alone, transductive: plus an id embedding",
        causal=True,
        items=_text_items,
        temperature=0.07,
        reads=("text_vectors",),
        needs=("text_vectors",),
    ),
}


def _lares_options(config: Config) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "core_layers": config.core_layers,
        "heads": config.heads,
        "ffn_dim": config.ffn_dim,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "mean_steps": config.mean_steps,
        "adapter": config.lares_adapter,
        "trajectory_weight": config.trajectory_weight,
        "step_weight": config.step_weight,
        "contrastive_temperature": config.contrastive_temperature,
    }


METHODS = {
    "base": Method(BaseRecommender, lambda config: {}, "the bare backbone, no reasoning"),
    "erl": Method(
        ERLRecommender,
        lambda config: {
            "dim": config.dim,
            "steps": config.steps,
            "kl_weight": config.kl_weight,
            "kl_limit": config.kl_limit,
        },
        "one stream, the mean of its steps, kept apart by their divergence (ReaRec, arXiv 2503.22675)",
    ),
    "prl": Method(
        PRLRecommender,
        lambda config: {
            "dim": config.dim,
            "steps": config.steps,
            "progressive_weight": config.progressive_weight,
            "temperature_scale": config.temperature_scale,
            "contrastive_weight": config.contrastive_weight,
            "noise": config.noise,
            "warmup_epochs": config.warmup_epochs,
        },
        "one stream, its last step, every earlier one predicting hotter, robust to noise (ReaRec, 2025)",
    ),
    "lares": Method(
        LARESRecommender,
        _lares_options,
        "a depth-recurrent block refines the states of all positions; alignment losses, then reinforcement "
        "(LARES, arXiv 2505.16865)",
        post_training=Method(
            PostTrainedLARES,
            lambda config: {
                **_lares_options(config),
                "rollouts": config.rollouts,
                "reward": config.reward,
                "reference_weight": config.reference_weight,
            },
        ),
    ),
    "plr": Method(
        PLRRecommender,
        lambda config: {
            "dim": config.dim,
            "streams": config.streams,
            "steps": config.steps,
            "trigger_std": config.trigger_std,
            "kl_weight": config.kl_weight,
            "kl_limit": config.kl_limit,
            "contrastive_weight": config.contrastive_weight,
            "contrastive_temperature": config.contrastive_temperature,
            "gate": config.gate,
        },
        "parallel reasoning streams over the cached prefix, mixed by a gate (PLR, arXiv 2601.03153)",
    ),
}

# (backbone, method) that do not fit -> why: what about the two stands against it, not that it is missing.
REFUSALS: dict[tuple[str, str], str] = {
    ("bert4rec-cloze", method): "Cloze training fills in masked items and leaves no state of the last item, which "
    "reasoning starts from; take backbone bert4rec, the same encoder trained on the next item"
    for method in METHODS
    if method != "base"
}


def check_system(config: Config) -> None:
    """Refuse a configuration whose backbone, method, training rows and item sources do not fit together.

    Raises:
        ConfigError: naming what does not fit, and why.
    """
    for field, known in (("backbone", BACKBONES), ("method", METHODS)):
        if getattr(config, field) not in known:
            raise ConfigError(f"{field} must be one of {', '.join(known)}; found {getattr(config, field)!r}")
    backbone = BACKBONES[config.backbone]
    reason = REFUSALS.get((config.backbone, config.method))
    if reason:
        raise ConfigError(f"method {config.method!r} does not work on backbone {config.backbone!r}: {reason}")
    for source in ("features", "text_vectors"):
        given = getattr(config, source)
        if given and source not in backbone.reads:
            readers = [name for name, other in BACKBONES.items() if source in other.reads]
            raise ConfigError(f"{source} is not read by backbone {config.backbone!r}; it is by {', '.join(readers)}")
        if not given and source in backbone.needs:
            raise ConfigError(
                f"{source} is missing: backbone {config.backbone!r} cannot do without; "
                "name the folder that `plr embed-text` wrote"
            )
    if config.feature_fields and not config.features:
        raise ConfigError(f"feature_fields {list(config.feature_fields)} were chosen, but features names no file")
    possible = _row_kinds(config)
    if config.training_rows not in ("auto", *possible):
        raise ConfigError(
            f"training_rows must be {' or '.join(possible)} for method {config.method!r} on backbone "
            f"{config.backbone!r}; found {config.training_rows!r}"
        )


def row_kind(config: Config) -> str:
    """Return the kind of training rows: the configured one, or what the method prefers among those possible."""
    return _row_kinds(config)[0] if config.training_rows == "auto" else config.training_rows


def _row_kinds(config: Config) -> list[str]:
    """Return the kinds of rows that the method can train on and the backbone may see, the preferred one first."""
    backbone = BACKBONES[config.backbone]
    preferred = _method(config).model.row_kind
    return [kind for kind in dict.fromkeys((preferred, "prefix")) if kind in backbone.row_kinds]


def _method(config: Config) -> Method:
    """Return the configured method, as the backbone means it."""
    own = BACKBONES[config.backbone].base if config.method == "base" else None
    return (own or METHODS[config.method]).of_phase(config.phase)


def build_model(config: Config, items: ItemData | int) -> Recommender:
    """Build the configured recommender with weights drawn from config.seed; torch's global generator is left as it was.

    Args:
        config: names the backbone and the method and holds their options.
        items: what is known about the items, or V where that is all.

    Raises:
        ConfigError: the backbone needs something about the items that is not there.
    """
    items = ItemData(items) if isinstance(items, int) else items
    backbone, method = BACKBONES[config.backbone], _method(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = SequenceEncoder(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            ffn_dim=config.ffn_dim,
            max_length=config.max_length + backbone.extra_positions,
            causal=backbone.causal,
            input_dropout=config.input_dropout,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
        )
        item_encoder = backbone.items(config, items)
        return method.model(item_encoder, encoder, temperature=config.temperature, **method.options(config))
