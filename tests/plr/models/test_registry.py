"""Every pair of backbone and method that is not refused can be built, trained on its rows and ranked with."""

from dataclasses import replace

import pytest
import torch

from plr.config import Config
from plr.data import CountedTargets
from plr.errors import ConfigError
from plr.items import ItemData, ItemText
from plr.models import build_model
from plr.models.registry import options_of_other_methods
from plr.systems import BACKBONES, METHODS, REFUSALS, method_of, row_kinds
from tests.plr.models.helpers import random_batch, small_config

PAIRS = [(backbone, method) for backbone in BACKBONES for method in METHODS]


KINDS = [
    (*pair, kind)
    for pair in PAIRS
    if pair not in REFUSALS
    for kind in row_kinds(pair[0], method_of(*pair, "spt"))
]


@pytest.mark.parametrize(("backbone", "method", "kind"), KINDS)
def test_a_pair_has_finite_losses_gradients_and_scores(backbone, method, kind):
    sources = dict.fromkeys(BACKBONES[backbone].needs, "somewhere")
    if (method, kind) == ("lares", "sequence"):
        sources["trajectory_weight"] = 0.0
    config = small_config(backbone=backbone, method=method, training_rows=kind, **sources)
    text = ItemText(torch.randn(29, 8), torch.ones(29, dtype=torch.bool)) if BACKBONES[backbone].needs else None
    model = build_model(config, ItemData(29, text=text)).train()
    batch = random_batch()
    assert model.eval().scores(batch).shape == (4, 29)
    if kind == "sequence":
        padded = torch.arange(batch.item_ids.shape[1]) >= batch.lengths[:, None]
        targets = batch.item_ids.roll(-1, 1).masked_fill(padded, -100)
        batch = replace(batch, targets=targets, counted=CountedTargets.of(targets))
    losses = model.train().losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("backbone", "method"), REFUSALS)
def test_a_refused_pair_exists_and_says_why(backbone, method):
    assert (backbone, method) in PAIRS
    with pytest.raises(ConfigError, match=f"method '{method}' does not work on backbone '{backbone}': ") as raised:
        Config(backbone=backbone, method=method, **dict.fromkeys(BACKBONES[backbone].needs, "somewhere"))
    assert REFUSALS[backbone, method] in str(raised.value)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"backbone must be one of .*sasrec, .*; found 'gru'"):
        Config(backbone="gru")
    with pytest.raises(ConfigError, match=r"method must be one of .*base, .*; found 'think'"):
        Config(method="think")


def test_the_number_of_items_is_enough_where_nothing_else_is_known():
    one, two = build_model(small_config(), 29), build_model(small_config(), ItemData(29))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "own", "other"),
    [
        ("erl", {"steps", "kl_weight", "kl_limit"}, {"streams", "noise"}),
        ("prl", {"steps", "noise", "warmup_epochs", "contrastive_weight"}, {"kl_weight", "streams"}),
        ("base", {"consistency_weight"}, {"kl_weight", "mask_probability"}),
    ],
)
def test_the_options_of_other_methods_are_not_the_methods_own(method, own, other):
    found = options_of_other_methods(Config(method=method))
    assert not own & found
    assert other <= found
