"""Names to models: a new backbone or method is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plr.config import Config
from plr.models.base import BaseRecommender
from plr.models.encoder import SequenceEncoder
from plr.models.items import IdItemEncoder
from plr.models.plr import PLRRecommender
from plr.models.recommender import Recommender


@dataclass(frozen=True)
class Backbone:
    """A sequence encoder's kind: whether a position may read what follows it."""

    causal: bool


@dataclass(frozen=True)
class Method:
    """A recommender class and how its own options are read from the configuration."""

    model: type[Recommender]
    options: Callable[[Config], dict[str, Any]]


BACKBONES = {
    "sasrec": Backbone(causal=True),
}

METHODS = {
    "base": Method(BaseRecommender, lambda config: {}),
    "plr": Method(
        PLRRecommender,
        lambda config: {
            "dim": config.dim,
            "streams": config.streams,
            "steps": config.steps,
            "kl_weight": config.kl_weight,
            "kl_limit": config.kl_limit,
            "contrastive_weight": config.contrastive_weight,
            "contrastive_temperature": config.contrastive_temperature,
            "gate": config.gate,
        },
    ),
}


def build_model(config: Config, num_items: int) -> Recommender:
    """Build the configured recommender with weights drawn from config.seed; torch's global generator is left as it was.

    Args:
        config: names the backbone and the method and holds their options.
        num_items: V.
    """
    backbone, method = BACKBONES[config.backbone], METHODS[config.method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = SequenceEncoder(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            ffn_dim=config.ffn_dim,
            max_length=config.max_length,
            causal=backbone.causal,
            input_dropout=config.input_dropout,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
        )
        items = IdItemEncoder(num_items, config.dim)
        return method.model(items, encoder, temperature=config.temperature, **method.options(config))
