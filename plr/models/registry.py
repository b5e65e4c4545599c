"""From a configuration to a model; which backbones and methods there are stands in plr/systems.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from plr.config import Config
from plr.items import ItemData
from plr.models.encoder import SequenceEncoder
from plr.models.recommender import Recommender
from plr.systems import BACKBONES


def build_model(config: Config, items: ItemData | int) -> Recommender:
    """Build the configured recommender with weights drawn from config.seed; torch's global generator is left as it was.

    Args:
        config: names the backbone and the method and holds their options.
        items: what is known about the items, or V where that is all.

    Raises:
        ConfigError: the backbone needs something about the items that is not there.
    """
    data = ItemData(items) if isinstance(items, int) else items
    backbone = BACKBONES[config.backbone]
    model, item_encoder = named("methods", config.system.model), named("items", backbone.items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = SequenceEncoder(config, causal=backbone.causal, extra_positions=backbone.extra_positions)
        return model(item_encoder(data, config.dim, config), encoder, config)


def named(folder: str, name: str) -> Any:
    """Return what `plr.systems` calls "file.name", of a folder of `plr.models`."""
    module, _, attribute = name.partition(".")
    return getattr(import_module(f"plr.models.{folder}.{module}"), attribute)
