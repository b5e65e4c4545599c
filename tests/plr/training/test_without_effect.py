import warnings

import pytest

from plr.config import Config
from plr.training.trainer import train
from plr.training.without_effect import warn_of_parts_without_effect

ITEMS = 50


def warned(**given) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_parts_without_effect(Config(data="data", out="out", **given), ITEMS)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"method": "prl", "epochs": 3, "warmup_epochs": 3},
            "PRL's contrastive loss never counts: warmup_epochs is 3, and the run has 3 epochs",
        ),
        (
            {"method": "base", "loss": "gbce", "negatives": ITEMS - 1},
            "gbce is bce here, whatever gbce_t: negatives is 49, as many as there are other items (49) or more",
        ),
    ],
)
def test_a_part_that_never_counts_is_said(given, message):
    assert warned(**given) == [message]


@pytest.mark.parametrize(
    "given",
    [
        {"method": "prl", "epochs": 4, "warmup_epochs": 3},
        {"method": "prl", "epochs": 1, "contrastive_weight": 0.0},
        {"method": "plr", "epochs": 1},
        {"method": "base", "loss": "gbce", "negatives": ITEMS - 2},
        {"method": "base", "loss": "gbce", "negatives": ITEMS, "gbce_t": 0.0},
        {"method": "base", "loss": "bce", "negatives": ITEMS},
    ],
)
def test_nothing_is_said_of_what_counts(given):
    assert warned(**given) == []


def test_training_says_it(quick):
    with pytest.warns(UserWarning, match="contrastive loss never counts"):
        train(Config(**{**quick, "method": "prl", "epochs": 1}))
