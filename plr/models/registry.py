"""From a configuration to a model; which backbones and methods there are stands in plr/systems.py."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any, get_type_hints

import torch

from plr.config import Config
from plr.items import ItemData
from plr.models.encoder import SequenceEncoder
from plr.models.items.sharded import ItemPart
from plr.models.recommender import RecommenderModel
from plr.systems import BACKBONES, METHODS, Method


def build_model(config: Config, items: ItemData | int, *, part: tuple[int, int] | None = None) -> RecommenderModel:
    """Build the configured recommender with weights drawn from config.seed; torch's global generator is left as it was.

    Args:
        config: names the backbone and the method and holds their options.
        items: what is known about the items, or V where that is all.
        part: (process, processes) of a run whose processes share the item table: it has the rows of that process.

    Raises:
        ConfigError: the backbone needs something about the items that is not there.
    """
    data = ItemData(items) if isinstance(items, int) else items
    backbone = BACKBONES[config.backbone]
    model, item_encoder = named("methods", config.system.model), named("items", backbone.items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = SequenceEncoder(config, causal=backbone.causal, extra_positions=backbone.extra_positions)
        shared = () if part is None else (ItemPart(data.num_items, *part),)
        return model(item_encoder(data, config.dim, config, *shared), encoder, config)


def options_of_other_methods(config: Config) -> set[str]:
    """Return the names of the options that only other methods than the configured one have: they decide nothing."""
    systems = [*METHODS.values(), *(each.base for each in BACKBONES.values() if each.base)]
    systems += [each.post_training for each in systems if each.post_training]
    every = {name for system in systems for name in _option_names(system)}
    return every - _option_names(config.system)


def _option_names(system: Method) -> set[str]:
    taken = get_type_hints(named("methods", system.model))["options"]  # the class's: it may inherit its __init__
    return {each.name for each in fields(taken)}


def named(folder: str, name: str) -> Any:
    """Return what `plr.systems` calls "file.name", of a folder of `plr.models`."""
    module, _, attribute = name.partition(".")
    return getattr(import_module(f"plr.models.{folder}.{module}"), attribute)
